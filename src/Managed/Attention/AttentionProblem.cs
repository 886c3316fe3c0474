namespace TransformerKernels;

/// <summary>What attention is computed of. Set what there is; what isn't set is absent.</summary>
/// <remarks>
/// Notation: b batch, h query heads, hk key heads (a divisor of h; query head i uses key head i / (h / hk)), Sq queries, Sk keys, d head size, dv value size.
/// Tensors are float32 unless their type is told (offsets, lengths, the mask), with any strides: a buffer laid out [batch, position, head, headSize] is passed as <c>view.Permute(0, 2, 1, 3)</c>.
/// Query i stands at p = i + <see cref="QueryOffset"/> (or its sequence's of <see cref="QueryOffsets"/>); the distance of a pair is key position − p.
/// </remarks>
public ref struct AttentionProblem
{
    /// <summary>[b, h, Sq, d]. Required.</summary>
    public TensorView Query { get; set; }

    /// <summary>[b, hk, Sk, d]. Required.</summary>
    public TensorView Key { get; set; }

    /// <summary>[b, hk, Sk, dv]. Required.</summary>
    public TensorView Value { get; set; }

    /// <summary>What query · key is multiplied by; 1/√d if absent.</summary>
    public float? Scale { get; set; }

    /// <summary>Whether a query sees only keys at distance ≤ 0.</summary>
    public bool Causal { get; set; }

    /// <summary>Where query 0 stands among the keys; Sk − Sq if absent, which aligns the last query with the last key (bottom-right); 0 is top-left.</summary>
    public long? QueryOffset { get; set; }

    /// <summary>The same for each sequence, [b], int32 or int64, in place of <see cref="QueryOffset"/>.</summary>
    public TensorView QueryOffsets { get; set; }

    /// <summary>ALiBi slopes m, [h] or [b, h]: adds −m·|distance| (Press et al. 2022). <see cref="Alibi.Slopes"/> makes the usual ones.</summary>
    public TensorView Slopes { get; set; }

    /// <summary>A bias read at distance + <see cref="DistanceCentre"/>, [h, n] or [1, n]; n must cover every distance of the shapes, Sq + Sk − 1 of them.</summary>
    public TensorView DistanceBias { get; set; }

    /// <summary>The index of distance 0 in <see cref="DistanceBias"/>; Sk − 1 if absent, which with the default offset makes n = Sq + Sk − 1 fit exactly.</summary>
    public long? DistanceCentre { get; set; }

    /// <summary>T5's bias: a table [buckets, h] read at the bucket of the pair's distance.</summary>
    public BucketedBias BucketedBias { get; set; }

    /// <summary>Swin's bias: a table [(2H − 1)(2W − 1), h] read at the differences of the pair's rows and columns in a window of H x W positions.</summary>
    public GridBias GridBias { get; set; }

    /// <summary>A bias for every pair, [b, h, Sq, Sk]; any axis may have length 1, which shares the values along it. −∞ hides the pair.</summary>
    public TensorView DenseBias { get; set; }

    /// <summary>A bias for every query, [b, h, Sq]; any axis may have length 1. It changes the log-sum-exp, and the output only beside a sink.</summary>
    public TensorView RowBias { get; set; }

    /// <summary>A bias for every key, [b, h, Sk]; any axis may have length 1. With <see cref="RowBias"/> a term of rank two, a forgetting gate for instance.</summary>
    public TensorView ColumnBias { get; set; }

    /// <summary>A logit a head, [h], that takes part in the softmax without a key: e^sink joins the denominator (gpt-oss). −∞ is none.</summary>
    public TensorView Sinks { get; set; }

    /// <summary>Which pairs are visible, bool [b, h, Sq, Sk]; any axis may have length 1, which shares the values along it. It only hides: causality and the others still apply.</summary>
    public TensorView Mask { get; set; }

    /// <summary>How many keys each sequence has, [b], int32 or int64, from 0 to Sk: those beyond are hidden. All of them if absent. Positions don't change.</summary>
    public TensorView KeyLengths { get; set; }

    /// <summary>The bound c of softcapping, at least 2⁻¹²⁶: scores become c·tanh(score / c), after the rule and before the biases (Gemma 2).</summary>
    public float? Softcap { get; set; }

    /// <summary>The first tensor that a score rule reads. Without a rule there is none.</summary>
    public CapturedTensor Captured0 { get; set; }

    /// <summary>The second tensor that a score rule reads.</summary>
    public CapturedTensor Captured1 { get; set; }

    /// <summary>The third tensor that a score rule reads.</summary>
    public CapturedTensor Captured2 { get; set; }

    /// <summary>The fourth tensor that a score rule reads.</summary>
    public CapturedTensor Captured3 { get; set; }

    /// <summary>The first property that is set and that a device without <see cref="ComputeDevice.OffersAllOfAttention"/> lacks; null if there is none.</summary>
    internal readonly string? FirstBeyondTheBasics =>
        BucketedBias.IsPresent ? nameof(BucketedBias) : GridBias.IsPresent ? nameof(GridBias) : DenseBias.IsPresent ? nameof(DenseBias) : RowBias.IsPresent ? nameof(RowBias) : ColumnBias.IsPresent ? nameof(ColumnBias) :
        Sinks.IsPresent ? nameof(Sinks) : Mask.IsPresent ? nameof(Mask) : QueryOffsets.IsPresent ? nameof(QueryOffsets) : KeyLengths.IsPresent ? nameof(KeyLengths) : Softcap is not null ? nameof(Softcap) : null;
}

/// <summary>What the forward pass left for the backward pass.</summary>
public ref struct AttentionSaved
{
    /// <summary>[b, h, Sq, dv], as the forward pass wrote it. Required where a gradient arrives for it; else nothing of it is read.</summary>
    public TensorView Output { get; set; }

    /// <summary>[b, h, Sq] or [b, h, Sq, 2], as the forward pass wrote it. Required.</summary>
    /// <remarks>
    /// A log-sum-exp of 20 rounded to float32 is off by up to 1e-6, and so would be every weight of its row. The second column holds what rounding took; without it the backward pass
    /// sums the weights once more, which costs up to a fifth of its time: a GPU always, the CPU where a log-sum-exp is 8 or more in magnitude (16 or more of hundreds of queries and keys), where there are few queries, and where there are few keys.
    /// </remarks>
    public TensorView LogSumExp { get; set; }
}

/// <summary>The gradients that arrive at attention's outputs; at least one of them.</summary>
public ref struct AttentionUpstream
{
    /// <summary>[b, h, Sq, dv]; zero if absent.</summary>
    public TensorView Output { get; set; }

    /// <summary>[b, h, Sq]; zero if absent. Rows that see neither a key nor a sink ignore it.</summary>
    public TensorView LogSumExp { get; set; }
}

/// <summary>Where attention's gradients go; each has the shape of the tensor it belongs to. Absent ones are not computed.</summary>
public ref struct AttentionGradients
{
    /// <summary>[b, h, Sq, d].</summary>
    public TensorView Query { get; set; }

    /// <summary>[b, hk, Sk, d].</summary>
    public TensorView Key { get; set; }

    /// <summary>[b, hk, Sk, dv].</summary>
    public TensorView Value { get; set; }

    /// <summary>As <see cref="AttentionProblem.Slopes"/>.</summary>
    public TensorView Slopes { get; set; }

    /// <summary>As <see cref="AttentionProblem.DistanceBias"/>, summed over the batch, and over heads if it has one row.</summary>
    public TensorView DistanceBias { get; set; }

    /// <summary>As the table of <see cref="AttentionProblem.BucketedBias"/>, summed over the batch.</summary>
    public TensorView BucketedBias { get; set; }

    /// <summary>As the table of <see cref="AttentionProblem.GridBias"/>, summed over the batch.</summary>
    public TensorView GridBias { get; set; }

    /// <summary>As <see cref="AttentionProblem.DenseBias"/>, summed over what it is shared along.</summary>
    public TensorView DenseBias { get; set; }

    /// <summary>As <see cref="AttentionProblem.RowBias"/>, summed over what it is shared along: without sinks that of the log-sum-exp alone, and rounding.</summary>
    public TensorView RowBias { get; set; }

    /// <summary>As <see cref="AttentionProblem.ColumnBias"/>, summed over what it is shared along.</summary>
    public TensorView ColumnBias { get; set; }

    /// <summary>As <see cref="AttentionProblem.Sinks"/>, summed over the batch: −Σ e^(sink − L) · D over the queries.</summary>
    public TensorView Sinks { get; set; }

    /// <summary>As <see cref="AttentionProblem.Captured0"/>.</summary>
    public TensorView Captured0 { get; set; }

    /// <summary>As <see cref="AttentionProblem.Captured1"/>.</summary>
    public TensorView Captured1 { get; set; }

    /// <summary>As <see cref="AttentionProblem.Captured2"/>.</summary>
    public TensorView Captured2 { get; set; }

    /// <summary>As <see cref="AttentionProblem.Captured3"/>.</summary>
    public TensorView Captured3 { get; set; }

    /// <summary>Whether gradients are added to what the tensors hold; they are overwritten otherwise.</summary>
    public bool Accumulate { get; set; }
}
