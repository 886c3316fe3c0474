namespace TransformerKernels;

/// <summary>How the work of a fused call is cut, and where things lie in its workspace.</summary>
/// <remarks>
/// Tokens lie in the lanes. A chunk of tokens is packed transposed, in whole panels as wide as a register tile; the vocabulary streams past it, broadcast from its own memory. A row of
/// logits of the chunk, one entry of the vocabulary, is <see cref="Stride"/> floats. What is summed over the vocabulary is summed in pieces whose bounds the vocabulary's
/// size alone fixes; what is summed over tokens is added token by token onto what is there. So the chunk, which the budget decides, doesn't change a bit.
/// </remarks>
internal readonly struct HiddenPlan
{
    // Entries of the vocabulary whose softmax sums are formed in one: few enough for many threads, many enough that merging is nothing. On [1024, 1024] x 32,000, Zen 5 with AVX-512 and two threads, 256 and
    // 1,024 take within 2 hundredths of the same time, forward and in training.
    private const int PieceRows = 512;

    /// <summary>Entries of the vocabulary between two looks at their logits: with a tile's tokens they stay in the first cache.</summary>
    /// <remarks>As above, 32 take 1.01 of the forward pass's time and 1.02 of training's, 128 take 1.01 and 0.98, but twice the scratch memory of a thread.</remarks>
    public const int BlockRows = 64;

    // The gradient of the hidden states is summed in so many parts of the vocabulary.
    private const int MostGroups = 16;

    // What is taken without a limit: so much, or what one panel takes with its logits up to the second. On [512, 1024] x 151,936 a panel with its logits takes 33 MB and 0.85 of the time of the
    // 384 tokens that have room in the first without them.
    private const long DefaultBudget = 32_000_000, DefaultBudgetWithLogits = 64_000_000;

    // What is taken of a higher limit is what so many tokens take with their logits: there 99 MB take 0.74 of the time, and more of them nothing less.
    private const long MostTokensWithLogits = 384;

    // Of the narrowest rows and the smallest vocabulary fewer tokens have room in the default budget: a bound for what is computed of views that repeat one row.
    private const long MostTokens = 1 << 20;

    /// <summary>Max, Σ e^t, Σ e^t t, Σ e^2t, Σ z, argmax of a piece, for each token.</summary>
    public const int PartialFields = 6;

    /// <summary>Shift, the slope's four coefficients, gradient at the target and the target's logit, for each token.</summary>
    public const int TokenFields = 7;

    public readonly nint Tokens, Width, Vocabulary, Lanes, Panel, Chunk;
    public readonly bool Backward, Keeps, Converts;
    public readonly long Bytes, ScratchBytes;

    // In floats, from the start. Of indices there are the chunk's tokens and their targets.
    public readonly nint PackedHidden, PackedRows, Partials, PerToken, HiddenParts, Logits, Indices, Scratch;

    /// <summary>The budget that a workspace of this limit leaves beside other scratch memory.</summary>
    public static long Left(long limit, long beside) => limit == long.MaxValue ? limit : limit - beside;

    /// <param name="problem">Shapes and types.</param>
    /// <param name="backward">Whether gradients are wanted.</param>
    /// <param name="keeps">Whether logits are needed a second time, and should be kept if they can.</param>
    /// <param name="budget">The bytes to stay within if that suffices at all; <see cref="long.MaxValue"/> leaves it to the plan.</param>
    /// <param name="lanes">Floats of a vector.</param>
    /// <param name="threads">How many threads have scratch memory of their own.</param>
    public HiddenPlan(in HiddenProblem problem, bool backward, bool keeps, long budget, nint lanes, int threads)
    {
        // The largest chunk that the budget allows; with its logits if it allows that at all, else without.
        nint panel = PanelOf(lanes);
        bool unlimited = budget == long.MaxValue;
        long withLogits = keeps ? new HiddenPlan(problem, backward, keeps, unlimited ? panel : RoundUp((nint)MostTokensWithLogits, panel), lanes, threads).Bytes : 0;
        budget = Math.Min(budget, unlimited && withLogits > DefaultBudgetWithLogits ? DefaultBudget : Math.Max(DefaultBudget, withLogits));
        this = Largest(problem, backward, keeps, budget, lanes, threads);
        if (Bytes > budget && keeps)
            this = Largest(problem, backward, keeps: false, budget, lanes, threads);
    }

    // The tokens of a register tile.
    private static nint PanelOf(nint lanes) => VocabularyProduct.MostVectors * lanes;

    // Of as many panels as the budget allows, but of one at least: more of them never take less.
    private static HiddenPlan Largest(in HiddenProblem problem, bool backward, bool keeps, long budget, nint lanes, int threads)
    {
        nint panel = PanelOf(lanes), panels = 1, most = RoundUp((nint)Math.Clamp(problem.Hidden.Length(0), 1, MostTokens), panel) / panel;
        while (panels < most)
        {
            nint middle = most - (most - panels) / 2;
            if (new HiddenPlan(problem, backward, keeps, middle * panel, lanes, threads).Bytes <= budget)
                panels = middle;
            else
                most = middle - 1;
        }
        return new(problem, backward, keeps, panels * panel, lanes, threads);
    }

    // A chunk of so many tokens.
    private HiddenPlan(in HiddenProblem problem, bool backward, bool keeps, nint chunk, nint lanes, int threads)
    {
        Tokens = (nint)problem.Hidden.Length(0);
        Width = (nint)problem.Hidden.Length(1);
        Vocabulary = (nint)(problem.ValidVocabulary ?? problem.Vocabulary.Length(0));
        Lanes = lanes;
        Panel = PanelOf(lanes);
        Backward = backward;
        Converts = problem.Vocabulary.Type != ElementType.Float32;
        (Keeps, Chunk) = (keeps, chunk);

        long at = 0, tokens = chunk;
        Indices = Take(ref at, 2 * tokens * (sizeof(long) / sizeof(float)));
        PackedHidden = Take(ref at, tokens * Width);
        PackedRows = Take(ref at, backward ? tokens * RoundUp(Width, Panel) : 0);
        Partials = Take(ref at, tokens * Pieces * PartialFields);
        PerToken = Take(ref at, tokens * TokenFields);
        HiddenParts = Take(ref at, backward ? tokens * Groups * Width : 0);
        Logits = Take(ref at, keeps ? tokens * Vocabulary : 0);
        Scratch = (nint)at;
        ScratchBytes = ScratchFloats * (long)sizeof(float);
        Bytes = at * sizeof(float) + ScratchBytes * threads;
    }

    /// <summary>The floats of a row: one for each token of a chunk.</summary>
    public nint Stride => Chunk;

    /// <summary>How many pieces the vocabulary has, and how many groups of them.</summary>
    public nint Pieces => (Vocabulary + PieceRows - 1) / PieceRows;

    public nint Groups => Math.Min(Pieces, MostGroups);

    /// <summary>The entries of a piece.</summary>
    public (nint Start, nint End) Piece(nint piece) => (piece * PieceRows, Math.Min((piece + 1) * PieceRows, Vocabulary));

    /// <summary>The entries of a group of pieces.</summary>
    public (nint Start, nint End) Group(nint group) => (group * Pieces / Groups * PieceRows, Math.Min((group + 1) * Pieces / Groups * PieceRows, Vocabulary));

    // A block's logits, the logits before they were differentiated, the block's entries converted, and a tile's worth at the end of rows.
    private nint ScratchFloats => RoundUp(BlockFloats + (Converts ? BlockRows * Width : 0) + BlockRows * Panel + Width, Aligned);

    /// <summary>The floats of a block's logits in scratch memory: those of all tokens, before and after they are differentiated, or of one panel of them.</summary>
    public nint BlockFloats => Backward ? 2 * BlockRows * Chunk : BlockRows * Panel;

    // Floats of a cache line.
    private const int Aligned = 16;

    // In 64 bits, for a chunk may be tried that no memory holds.
    private static nint Take(ref long at, long floats)
    {
        long place = at;
        at += (floats + Aligned - 1) / Aligned * Aligned;
        return (nint)place;
    }

    public static nint RoundUp(nint x, nint multiple) => (x + multiple - 1) / multiple * multiple;
}
