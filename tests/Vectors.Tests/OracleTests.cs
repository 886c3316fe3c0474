using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>Every gradient that the oracle states agrees with finite differences of the values that it states.</summary>
public class OracleTests
{
    private const double Tolerance = 1e-8;

    private readonly Random random = new(3);

    public static TheoryData<string> Attentions => ["plain", "causal", "grouped", "offset", "slopes", "slopes per batch", "distance", "distance shared", "everything",
        "checkerboard", "squared", "leaky", "by head", "by distance", "by absolute distance", "by query", "by key", "by pair", "log-length", "more queries",
        "dense", "dense shared", "row and column", "softcap", "buckets", "buckets both ways", "sinks", "cells", "mask", "key lengths", "offsets"];

    [Theory]
    [MemberData(nameof(Attentions))]
    public void Attention_gradients_match_finite_differences(string what)
    {
        AttentionInputs inputs = Attention(what);
        Grid<double> query = inputs.Query;
        Grid<double> upstream = Noise(query.Shape[0], query.Shape[1], query.Shape[2], inputs.Value.Shape[3]);
        Grid<double> logSumExpUpstream = Noise(query.Shape[0], query.Shape[1], query.Shape[2]);
        AttentionGradient<double> gradient = AttentionOracle.Backward<double>(inputs, upstream, logSumExpUpstream);
        double Loss()
        {
            AttentionResult<double> result = AttentionOracle.Forward<double>(inputs);
            double loss = 0;
            for (int i = 0; i < upstream.Data.Length; i++)
                loss += upstream.Data[i] * result.Output.Data[i];
            for (int i = 0; i < logSumExpUpstream.Data.Length; i++)
                loss += double.IsFinite(result.LogSumExp.Data[i]) ? logSumExpUpstream.Data[i] * result.LogSumExp.Data[i] : 0;
            return loss;
        }
        Same(inputs.Query, gradient.Query, Loss);
        Same(inputs.Key, gradient.Key, Loss);
        Same(inputs.Value, gradient.Value, Loss);
        if (inputs.Slopes is not null)
            Same(inputs.Slopes, gradient.Slopes!, Loss);
        if (inputs.DistanceBias is not null)
            Same(inputs.DistanceBias, gradient.DistanceBias!, Loss);
        if (inputs.BucketTable is not null)
            Same(inputs.BucketTable, gradient.BucketTable!, Loss);
        if (inputs.CellTable is not null)
            Same(inputs.CellTable, gradient.CellTable!, Loss);
        if (inputs.DenseBias is not null)
            Same(inputs.DenseBias, gradient.DenseBias!, Loss);
        if (inputs.RowBias is not null)
            Same(inputs.RowBias, gradient.RowBias!, Loss);
        if (inputs.ColumnBias is not null)
            Same(inputs.ColumnBias, gradient.ColumnBias!, Loss);
        if (inputs.Sinks is not null)
            Same(inputs.Sinks, gradient.Sinks!, Loss);
        for (int c = 0; c < inputs.Captured.Count; c++)
            Same(inputs.Captured[c].Values, gradient.Captured[c], Loss);
    }

    [Fact]
    public void A_query_without_keys_has_zeros_and_minus_infinity()
    {
        AttentionInputs inputs = Attention("more queries");
        AttentionResult<double> result = AttentionOracle.Forward<double>(inputs);
        Assert.All(result.Output.Row(0, 0, 0).ToArray(), x => Assert.Equal(0, x));
        Assert.Equal(double.NegativeInfinity, result.LogSumExp[0, 0, 0]);
        AttentionGradient<double> gradient = AttentionOracle.Backward<double>(inputs, Noise(1, 2, 5, 2), Noise(1, 2, 5));
        Assert.All(gradient.Query.Row(0, 0, 0).ToArray(), x => Assert.Equal(0, x));
    }

    [Fact]
    public void What_is_hidden_may_be_NaN()
    {
        AttentionInputs clean = Attention("causal"), spoilt = new()
        {
            Query = clean.Query, Key = Grid.Of(clean.Key.Data, clean.Key.Shape), Value = Grid.Of(clean.Value.Data, clean.Value.Shape), Causal = true, QueryOffset = 0,
        };
        var reference = new AttentionInputs { Query = clean.Query, Key = clean.Key, Value = clean.Value, Causal = true, QueryOffset = 0 };
        spoilt.Key.Row(0, 0, 4).Fill(double.NaN);
        spoilt.Value.Row(0, 0, 4).Fill(double.NaN);
        Assert.Equal(AttentionOracle.Forward<double>(reference).Output.Data, AttentionOracle.Forward<double>(spoilt).Output.Data);
    }

    [Fact]
    public void Log_prob_gradients_match_finite_differences()
    {
        Grid<double> logits = Noise(5, 7);
        long[] targets = [0, 3, -100, 6, 2];
        double[] logProb = Noise(5).Data, logSumExp = Noise(5).Data, entropy = Noise(5).Data;
        Grid<double> gradient = LogProbsOracle.Backward<double>(logits, targets, logProb, logSumExp, entropy);
        Same(logits, gradient, () =>
        {
            TokenResult<double> result = LogProbsOracle.Forward<double>(logits, targets);
            double loss = 0;
            for (int t = 0; t < targets.Length; t++)
                loss += logProb[t] * result.LogProb[t] + logSumExp[t] * result.LogSumExp[t] + entropy[t] * result.Entropy[t];
            return loss;
        });
    }

    [Theory]
    [InlineData(0, false)]
    [InlineData(0.1, false)]
    [InlineData(0.3, true)]
    public void Preference_gradients_match_finite_differences(double labelSmoothing, bool sum)
    {
        Grid<double> chosen = Noise(6), rejected = Noise(6), referenceChosen = Noise(6), referenceRejected = Noise(6);
        PreferenceResult<double> Evaluate() => PreferenceOracle.DpoSigmoid<double>(chosen.Data, rejected.Data, referenceChosen.Data, referenceRejected.Data, 0.7, labelSmoothing, sum);
        double Loss() => Evaluate().Loss;
        PreferenceResult<double> result = Evaluate();
        Same(chosen, new(result.Chosen, 6), Loss);
        Same(rejected, new(result.Rejected, 6), Loss);
        Same(referenceChosen, new(result.ReferenceChosen, 6), Loss);
        Same(referenceRejected, new(result.ReferenceRejected, 6), Loss);
    }

    [Theory]
    [InlineData(Reduction.TokenMean, null)]
    [InlineData(Reduction.TokenSum, null)]
    [InlineData(Reduction.SequenceMeanTokenSum, null)]
    [InlineData(Reduction.SequenceMeanTokenMean, null)]
    [InlineData(Reduction.TokenMean, 11.0)]
    [InlineData(Reduction.SequenceMeanTokenMean, 11.0)]
    public void Policy_gradients_match_finite_differences(Reduction reduction, double? divisor)
    {
        // Log-ratios in steps of 0.05 from −1.5 on, clear of the clips at ln 0.8, ln 1.2 and of the bound 1.3.
        Grid<double> logProb = Noise(5, 12), old = Grid.Of(logProb.Data, 5, 12), advantage = Noise(5, 12);
        for (int i = 0; i < 60; i++)
            old.Data[i] -= -1.481 + 0.05 * i;
        bool[] mask = new bool[60];
        for (int i = 0; i < 60; i++)
            mask[i] = i % 7 != 2 && i / 12 != 3;
        PolicyResult<double> Evaluate() => PolicyOracle.PpoClip<double>(logProb, old, advantage, mask, 0.2, 0.2, 1.6, 1.3, reduction, divisor);
        Same(logProb, Evaluate().LogProb, () => Evaluate().Loss);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Rotary_gradient_is_the_transposed_rotation(bool interleaved)
    {
        Grid<double> x = Noise(2, 2, 3, 8), upstream = Noise(2, 2, 3, 8), positions = Grid.Of(new double[] { 0, 5, 2, 7, 1, 30 }, 2, 3);
        double[] frequencies = RotaryOracle.Frequencies(6);
        Grid<double> gradient = RotaryOracle.Rotate<double>(upstream, positions, frequencies, interleaved, backward: true, attentionFactor: 1.3);
        Same(x, gradient, () =>
        {
            Grid<double> rotated = RotaryOracle.Rotate<double>(x, positions, frequencies, interleaved, attentionFactor: 1.3);
            double loss = 0;
            for (int i = 0; i < rotated.Data.Length; i++)
                loss += rotated.Data[i] * upstream.Data[i];
            return loss;
        });
    }

    [Fact]
    public void Advantages_with_a_hole_are_those_without_the_hole()
    {
        Grid<double> rewards = Grid.Of(new double[] { 1, 2, 99, 3 }, 1, 4), values = Grid.Of(new double[] { .5, .25, 99, 1 }, 1, 4);
        (Grid<double> advantages, Grid<double> returns) = AdvantageOracle.Estimate<double>(rewards, values, [true, true, false, true], 0.9, 0.8);
        (Grid<double> dense, _) = AdvantageOracle.Estimate<double>(Grid.Of(new double[] { 1, 2, 3 }, 1, 3), Grid.Of(new double[] { .5, .25, 1 }, 1, 3), null, 0.9, 0.8);
        Assert.Equal([dense.Data[0], dense.Data[1], 0, dense.Data[2]], advantages.Data);
        Assert.Equal(0, returns.Data[2]);
        Assert.Equal(3, returns.Data[3]);
        Assert.Equal(2 + 0.9 * 1 - 0.25 + 0.9 * 0.8 * (3 - 1), dense.Data[1], 1e-12);
    }

    [Fact]
    public void Whitened_numbers_have_mean_0_and_variance_1()
    {
        Grid<double> values = Noise(3, 5);
        bool[] mask = [.. Enumerable.Range(0, 15).Select(i => i % 4 != 1)];
        double[] white = [.. AdvantageOracle.Whiten<double>(values, mask).Data.Where((_, i) => mask[i])];
        Assert.Equal(0, white.Average(), 1e-12);
        Assert.Equal(1, white.Sum(x => x * x) / (white.Length - 1), 1e-6);
        Assert.Throws<ArgumentException>(() => AdvantageOracle.Whiten<double>(values, [.. Enumerable.Range(0, 15).Select(i => i == 1)]));
    }

    private AttentionInputs Attention(string what)
    {
        (int b, int h, int hk, int sq, int sk) = what switch
        {
            "grouped" => (1, 4, 2, 3, 4),
            "slopes per batch" or "everything" or "by query" or "by key" or "by pair" or "dense" or "dense shared" or "row and column" or "key lengths" or "mask" or "offsets" => (2, 2, 1, 3, 4),
            "more queries" or "sinks" => (1, 2, 2, 5, 3),
            _ => (1, 2, 2, 4, 5),
        };
        CapturedValues? captured = what switch
        {
            "by head" or "log-length" => new(Noise(h), CapturedBy.Head),
            "by distance" => new(Noise(h, 4), CapturedBy.HeadAndDistance, 2),
            "by absolute distance" or "everything" or "softcap" => new(Noise(1, 3), CapturedBy.HeadAndAbsoluteDistance),
            "by query" => new(Noise(b, h, sq), CapturedBy.Query),
            "by key" => new(Noise(b, 1, sk), CapturedBy.Key),
            "by pair" => new(Noise(1, h, sq, sk), CapturedBy.Pair),
            _ => null,
        };
        return new()
        {
            Query = Noise(b, h, sq, 3),
            Key = Noise(b, hk, sk, 3),
            Value = Noise(b, hk, sk, 2),
            Causal = what is "causal" or "everything" or "more queries" or "sinks" or "offsets",
            QueryOffset = what == "offset" ? 1 : null,
            Scale = what == "offset" ? 0.3 : null,
            Slopes = what is "slopes" ? Noise(h) : what is "slopes per batch" or "everything" ? Noise(b, h) : null,
            DistanceBias = what is "distance" or "everything" ? Noise(h, sq + sk - 1) : what == "distance shared" ? Noise(1, sq + sk + 2) : null,
            DistanceCentre = what == "distance shared" ? sk + 1 : null,
            BucketTable = what == "buckets" ? Noise(3, h) : what == "buckets both ways" ? Noise(6, h) : null,
            MaximumDistance = 3,
            IsBidirectional = what == "buckets both ways",
            CellTable = what == "cells" ? Noise(15, h) : null,
            WindowHeight = 2,
            WindowWidth = 3,
            DenseBias = what is "dense" or "softcap" ? Noise(b, h, sq, sk) : what == "dense shared" ? Noise(1, 1, sq, sk) : null,
            RowBias = what == "row and column" ? Noise(b, 1, sq) : null,
            ColumnBias = what == "row and column" ? Noise(1, h, sk) : null,
            Sinks = what == "sinks" ? Noise(h) : null,
            Mask = what == "mask" ? Grid.Of((ReadOnlySpan<double>)[1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 0], 1, 1, 3, 4) : null,
            QueryOffsets = what == "offsets" ? [0, 2] : null,
            KeyLengths = what == "key lengths" ? [3, 0] : null,
            Softcap = what == "softcap" ? 1.5 : null,
            Formula = what switch
            {
                "checkerboard" => new CheckerboardFormula(),
                "squared" => new SquaredFormula(),
                "leaky" => new LeakyFormula(0.125),
                "log-length" => new LogLengthFormula(),
                _ => captured is null ? null : new CapturedFactorFormula(),
            },
            Captured = captured is null ? [] : [captured],
        };
    }

    private Grid<double> Noise(params int[] shape)
    {
        Grid<double> noise = Grid.Zeros<double>(shape);
        foreach (ref double x in noise.Data.AsSpan())
            x = 2 * random.NextDouble() - 1;
        return noise;
    }

    private static void Same(Grid<double> variable, Grid<double> gradient, Func<double> loss)
    {
        double[] expected = FiniteDifferences.Gradient(variable.Data, loss);
        Assert.Equal(variable.Shape, gradient.Shape);
        for (int i = 0; i < expected.Length; i++)
            Assert.Equal(expected[i], gradient.Data[i], Tolerance);
    }
}
