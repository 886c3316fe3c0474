using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>Sequences with offsets and lengths of their own.</summary>
public class AttentionSequencesTests
{
    private static ComputeDevice Device => DeviceUnderTest.Device;

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Each_sequence_may_have_an_offset_of_its_own(bool causal)
    {
        foreach ((int queries, int keys) in ((int, int)[])[(3, 5), (66, 140)])
        {
            int[] offsets = [0, keys - queries, 3, -2 * queries, keys + 20];
            new AttentionCase
            {
                Batch = 5, Queries = queries, Keys = keys, Causal = causal, QueryOffsets = offsets, HasLogSumExpUpstream = true, Slopes = AttentionCase.Numbers(1, 0.1f, 2),
                DistanceBias = AttentionCase.Numbers(2, 1, 2, 600), DistanceCentre = 300, BucketTable = AttentionCase.Numbers(3, 1, 12, 2), IsBidirectional = true, MaximumDistance = 60,
            }.Check(Device, default(PlainScore));
            new AttentionCase
            {
                Batch = 5, Queries = queries, Keys = keys, Causal = causal, QueryOffsets = offsets, Captured = [new(AttentionCase.Numbers(1, 1, 2), CapturedBy.Head), new(AttentionCase.Numbers(4, 1, 2, 11), CapturedBy.HeadAndDistance, 6)],
            }.Check(Device, new Gained<Temperature>(new Temperature(0.25f, 20)), new GainedTemperatureFormula(0.25f, 20));
        }
    }

    [Fact]
    public void Offsets_of_sequences_have_the_bits_of_calls_of_their_own_and_either_integer_type()
    {
        const int queries = 5, keys = 9, size = 4;
        float[] q = Seeded.Normal(2 * queries * size, 1), k = Seeded.Normal(2 * keys * size, 2), bias = Seeded.Normal(41, 3);
        using var workspace = new Workspace(Device);
        float[] Run(int first, int count, TensorView offsets, long? offset)
        {
            float[] o = new float[count * queries * size];
            var problem = new AttentionProblem
            {
                Query = TensorView.Of(q, 2, 1, queries, size).Slice(0, first, count), Key = TensorView.Of(k, 2, 1, keys, size).Slice(0, first, count), Value = TensorView.Of(k, 2, 1, keys, size).Slice(0, first, count),
                Causal = true, QueryOffset = offset, QueryOffsets = offsets, DistanceBias = TensorView.Of(bias, 1, 41), DistanceCentre = 20,
            };
            TransformerKernels.Attention.Forward(Device, problem, TensorView.Of(o, count, 1, queries, size), default, workspace);
            return o;
        }
        float[] expected = [.. Run(0, 1, default, 1), .. Run(1, 1, default, 6)];
        Assert.Equal(expected, Run(0, 2, TensorView.Of((int[])[1, 6], 2), null));
        Assert.Equal(expected, Run(0, 2, TensorView.Of((long[])[1, 6], 2), null));
    }

    [Fact]
    public void An_offset_that_leaves_the_distance_vector_is_refused_before_anything_is_written()
    {
        ArgumentException thrown = Refused(TensorView.Of((int[])[2, 3], 2), default, TensorView.Of(new float[7], 1, 7));
        Assert.Equal("problem.DistanceBias", thrown.ParamName);
        Assert.Contains("distances -5 to 1 need entries -1 to 5", thrown.Message);
    }

    [Theory]
    [InlineData(float.NaN)]
    [InlineData(1f)]
    public void Keys_beyond_a_sequences_length_contribute_nothing_whatever_they_hold(float poison)
    {
        foreach ((int queries, int keys) in ((int, int)[])[(4, 7), (70, 133), (5, 600)])
        {
            foreach (bool causal in (bool[])[false, true])
            {
                int[] lengths = [keys, 0, keys / 2 + 1, 1];
                new AttentionCase
                {
                    Batch = 4, Queries = queries, Keys = keys, Causal = causal, KeyLengths = lengths, HasLogSumExpUpstream = true,
                    DistanceBias = AttentionCase.Numbers(8, 1, 2, queries + keys - 1), DenseBias = AttentionCase.Numbers(9, 1, 4, 1, queries, keys),
                    Prepare = (_, k, v) =>
                    {
                        for (int b = 0; b < 4; b++)
                        {
                            for (int j = lengths[b]; j < keys; j++)
                                k[b, 0, j, 0] = v[b, 1, j, 1] = poison;
                        }
                    },
                }.Check(Device, default(PlainScore));
            }
        }
    }

    // The products take keys four at a time.
    [Fact]
    public void Keys_beyond_a_sequences_length_get_no_gradient_from_a_query_that_is_no_number()
    {
        foreach (int length in (int[])[61, 62, 63, 64, 65])
        {
            new AttentionCase
            {
                Batch = 2, Queries = 70, Keys = 70, KeyLengths = [length, 70], HasLogSumExpUpstream = true,
                Prepare = (q, _, _) => q[0, 0, 5, 1] = float.NaN,
            }.Check(Device, default(PlainScore));
        }
    }

    [Fact]
    public void A_length_beyond_the_keys_is_refused_before_anything_is_written()
    {
        foreach (int length in (int[])[-1, 6])
        {
            var thrown = Assert.IsType<ArgumentOutOfRangeException>(Refused(default, TensorView.Of((int[])[5, length], 2), default));
            Assert.Equal("problem.KeyLengths", thrown.ParamName);
            Assert.Contains($"Sequence 1 has {length} keys; there are 0 to 5", thrown.Message);
        }
    }

    // What is thrown of two sequences of 3 queries and 5 keys; nothing is written.
    private static ArgumentException Refused(TensorView queryOffsets, TensorView keyLengths, TensorView distanceBias)
    {
        float[] q = new float[2 * 3 * 4], k = new float[2 * 5 * 4], o = new float[q.Length];
        Array.Fill(o, 7);
        using var workspace = new Workspace(Device);
        var problem = new AttentionProblem
        {
            Query = TensorView.Of(q, 2, 1, 3, 4), Key = TensorView.Of(k, 2, 1, 5, 4), Value = TensorView.Of(k, 2, 1, 5, 4), QueryOffsets = queryOffsets, KeyLengths = keyLengths, DistanceBias = distanceBias,
        };
        ArgumentException? thrown = null;
        try
        {
            TransformerKernels.Attention.Forward(Device, problem, TensorView.Of(o, 2, 1, 3, 4), default, workspace);
        }
        catch (ArgumentException exception)
        {
            thrown = exception;
        }
        Assert.All(o, x => Assert.Equal(7, x));
        Assert.NotNull(thrown);
        return thrown;
    }
}
