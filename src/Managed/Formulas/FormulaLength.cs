namespace TransformerKernels;

/// <summary>Counts the steps of a formula: a number that computes nothing but how long its formula is.</summary>
/// <remarks>
/// A formula is straight-line code, so one evaluation counts it all. The JIT stops inlining once a method has more than 512 variables: what a short
/// formula gains by <see cref="Lockstep{V}"/>, a long one would pay with a call a step.
/// </remarks>
internal readonly struct FormulaLength : IReal<FormulaLength>
{
    // The steps of the elementary functions, as Elementary writes them.
    private const int ExpSteps = 16, Expm1Steps = 17, LogSteps = 35, Log1pSteps = 33, TanhSteps = 14, SigmoidSteps = 20, SoftplusSteps = 28;

    [ThreadStatic]
    private static int steps, operations;

    /// <summary>The steps of a rule's formula.</summary>
    public static int Of<TRule>(TRule rule) where TRule : unmanaged, IScoreRule => Of(rule, out _);

    /// <summary>The steps of a rule's formula, and its operations: a function is one, and so is a constant.</summary>
    public static int Of<TRule>(TRule rule, out int operations) where TRule : unmanaged, IScoreRule
    {
        steps = FormulaLength.operations = 0;
        rule.Score(default, default(ScorePlace<FormulaLength>));
        operations = FormulaLength.operations;
        return steps;
    }

    private static FormulaLength Step(int count = 1)
    {
        steps += count;
        operations++;
        return default;
    }

    public static FormulaLength Zero => default;
    public static FormulaLength One => Step(0);
    public static FormulaLength From(float value) => Step(0);
    public static FormulaLength operator -(FormulaLength x) => Step();
    public static FormulaLength operator +(FormulaLength a, FormulaLength b) => Step();
    public static FormulaLength operator +(FormulaLength a, float b) => Step();
    public static FormulaLength operator +(float a, FormulaLength b) => Step();
    public static FormulaLength operator -(FormulaLength a, FormulaLength b) => Step();
    public static FormulaLength operator -(FormulaLength a, float b) => Step();
    public static FormulaLength operator -(float a, FormulaLength b) => Step();
    public static FormulaLength operator *(FormulaLength a, FormulaLength b) => Step();
    public static FormulaLength operator *(FormulaLength a, float b) => Step();
    public static FormulaLength operator *(float a, FormulaLength b) => Step();
    public static FormulaLength operator /(FormulaLength a, FormulaLength b) => Step();
    public static FormulaLength operator /(FormulaLength a, float b) => Step();
    public static FormulaLength operator /(float a, FormulaLength b) => Step();
    public static FormulaLength Abs(FormulaLength x) => Step();
    public static FormulaLength Sqrt(FormulaLength x) => Step();
    public static FormulaLength Exp(FormulaLength x) => Step(ExpSteps);
    public static FormulaLength Expm1(FormulaLength x) => Step(Expm1Steps);
    public static FormulaLength Log(FormulaLength x) => Step(LogSteps);
    public static FormulaLength Log1p(FormulaLength x) => Step(Log1pSteps);
    public static FormulaLength Tanh(FormulaLength x) => Step(TanhSteps);
    public static FormulaLength Sigmoid(FormulaLength x) => Step(SigmoidSteps);
    public static FormulaLength LogSigmoid(FormulaLength x) => Step(SoftplusSteps);
    public static FormulaLength Softplus(FormulaLength x) => Step(SoftplusSteps);

    // What a derivative takes beyond its function isn't counted.
    public static FormulaLength Tanh(FormulaLength x, out FormulaLength slope) => Both(TanhSteps, out slope);
    public static FormulaLength Sigmoid(FormulaLength x, out FormulaLength slope) => Both(SigmoidSteps, out slope);
    public static FormulaLength Softplus(FormulaLength x, out FormulaLength slope) => Both(SoftplusSteps, out slope);

    private static FormulaLength Both(int count, out FormulaLength slope) => slope = Step(count);

    public static FormulaLength Relu(FormulaLength x) => Step();
    public static FormulaLength Floor(FormulaLength x) => Step();
    public static FormulaLength Detach(FormulaLength x) => default;
    public static FormulaLength Min(FormulaLength a, FormulaLength b) => Step();
    public static FormulaLength Max(FormulaLength a, FormulaLength b) => Step();
    public static FormulaLength Clamp(FormulaLength x, FormulaLength low, FormulaLength high) => Step(2);
    public static FormulaLength SelectLess(FormulaLength a, FormulaLength b, FormulaLength then, FormulaLength otherwise) => Step(2);
    public static FormulaLength SelectEqual(FormulaLength a, FormulaLength b, FormulaLength then, FormulaLength otherwise) => Step(2);
}
