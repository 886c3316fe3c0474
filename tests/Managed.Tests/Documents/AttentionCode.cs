using System.Runtime.CompilerServices;
using Xunit;

namespace TransformerKernels.Tests;

// snippet: wrapping-rule
/// <summary>Hides keys further back than a window; within it, whatever the inner rule says.</summary>
public readonly struct Window<TRule>(float size, TRule inner) : IScoreRule where TRule : unmanaged, IScoreRule
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T>
        => T.SelectLess(at.Distance, T.From(-size), T.From(float.NegativeInfinity), inner.Score(score, at.Shift(0)));  // uses 0 captures itself
}
// snippet ends

public class AttentionCode
{
    [Fact]
    public void Gradients_of_two_halves_of_a_batch_accumulate_to_those_of_the_whole()
    {
        const int heads = 4, keyHeads = 2, tokens = 24, headSize = 16;
        ComputeDevice device = ComputeDevice.Cpu;
        using var workspace = new Workspace(device);
        using TensorBuffer q = Noise(1, 2, heads, tokens, headSize), k = Noise(2, 2, keyHeads, tokens, headSize), v = Noise(3, 2, keyHeads, tokens, headSize), arriving = Noise(4, 2, heads, tokens, headSize);
        using TensorBuffer slopes = Noise(5, heads), output = Zeros(2, heads, tokens, headSize), logSumExp = Zeros(2, heads, tokens);
        using TensorBuffer dSlopes = Zeros(heads), whole = Zeros(heads);
        Problem(0, 2, whole, accumulate: false);
        Problem(0, 1, dSlopes, accumulate: false);
        Problem(1, 1, dSlopes, accumulate: true);
        Assert.All(whole.ToArray<float>().Zip(dSlopes.ToArray<float>()), pair => Assert.Equal(pair.First, pair.Second, 1e-4));

        void Problem(int first, int count, TensorView slopesGradient, bool accumulate)
        {
            TensorView query = Part(q), key = Part(k), value = Part(v), upstream = Part(arriving), outputPart = Part(output), logSumExpPart = Part(logSumExp);
            // snippet: attention
            var problem = new AttentionProblem { Query = query, Key = key, Value = value, Causal = true, Slopes = slopes };
            Attention.Forward(device, problem, outputPart, logSumExpPart, workspace);
            Attention.Backward(device, problem,
                new AttentionSaved { Output = outputPart, LogSumExp = logSumExpPart },
                new AttentionUpstream { Output = upstream },
                new AttentionGradients { Slopes = slopesGradient, Accumulate = accumulate },
                workspace);
            // snippet ends

            TensorView Part(TensorBuffer buffer) => buffer.View.Slice(0, first, count);
        }

        TensorBuffer Zeros(params ReadOnlySpan<long> shape) => device.Allocate(ElementType.Float32, shape);

        TensorBuffer Noise(int seed, params ReadOnlySpan<long> shape)
        {
            TensorBuffer buffer = Zeros(shape);
            Seeded.Normal(buffer.AsSpan<float>(), seed);
            return buffer;
        }
    }

    [Fact]
    public void Workspaces_are_told_by_shapes()
    {
        const int heads = 8, length = 2048, headSize = 64;
        using ComputeDevice device = ComputeDevice.OpenCpu(2);
        long place = 64;
        TensorView query = Nowhere(), key = Nowhere(), value = Nowhere(), queryGradient = Nowhere(), keyGradient = Nowhere(), valueGradient = Nowhere();
        // snippet: attention-memory
        // query, key, value and their gradients: [1, heads, length, 64]. Of an argument its shape is looked at, nothing is read.
        var problem = new AttentionProblem { Query = query, Key = key, Value = value };
        var gradients = new AttentionGradients { Query = queryGradient, Key = keyGradient, Value = valueGradient };
        long forward = Attention.ForwardWorkspaceBytes(device, problem), backward = Attention.BackwardWorkspaceBytes(device, problem, gradients);
        // snippet ends
        Assert.Equal((0.5, 11.4), (Math.Round(forward / 1e6, 1), Math.Round(backward / 1e6, 1)));

        TensorView Nowhere() => TensorView.FromPointer(device, (nint)(place += sizeof(float) * heads * length * headSize), ElementType.Float32, 1, heads, length, headSize);
    }

    [Fact]
    public void A_window_by_a_wrapping_rule_equals_attention_over_the_keys_inside_it()
    {
        const int tokens = 40, size = 5, headSize = 16;
        ComputeDevice device = ComputeDevice.Cpu;
        using var workspace = new Workspace(device);
        float[] query = Seeded.Normal(tokens * headSize, 1), key = Seeded.Normal(tokens * headSize, 2), value = Seeded.Normal(tokens * headSize, 3);
        float[] windowed = new float[tokens * headSize], last = new float[headSize];
        TensorView q = TensorView.Of(query, 1, 1, tokens, headSize), k = TensorView.Of(key, 1, 1, tokens, headSize), v = TensorView.Of(value, 1, 1, tokens, headSize);
        Attention.Forward(device, new AttentionProblem { Query = q, Key = k, Value = v, Causal = true }, new Window<PlainScore>(size, default),
            TensorView.Of(windowed, 1, 1, tokens, headSize), default, workspace);
        Attention.Forward(device, new AttentionProblem
        {
            Query = q.Slice(2, tokens - 1, 1),
            Key = k.Slice(2, tokens - 1 - size, size + 1),
            Value = v.Slice(2, tokens - 1 - size, size + 1),
        }, TensorView.Of(last, 1, 1, 1, headSize), default, workspace);
        Assert.All(windowed[^headSize..].Zip(last), pair => Assert.Equal(pair.First, pair.Second, 1e-5));
    }
}
