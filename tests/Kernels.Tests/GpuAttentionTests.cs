using System.Diagnostics;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>What is promised of attention on GPUs beyond what the CPU's tests show of both.</summary>
public class GpuAttentionTests(GpuUnderTest gpu, ITestOutputHelper output)
{
    [Fact]
    public void Scratch_forward()
    {
        gpu.NeedsOpenCl();
        foreach ((int sq, int sk, int d, int dv) in ((int, int, int, int)[])[(5, 5, 4, 4), (70, 100, 33, 40), (130, 257, 64, 64), (64, 64, 128, 128), (20, 200, 300, 300)])
        foreach (bool causal in (bool[])[false, true])
        {
            float[] q = Seeded.Normal(2 * 2 * sq * d, 1), k = Seeded.Normal(2 * 1 * sk * d, 2), v = Seeded.Normal(2 * sk * dv, 3);
            float[] Run(ComputeDevice device)
            {
                float[] o = new float[2 * 2 * sq * dv], l = new float[2 * 2 * sq * 2];
                var problem = new AttentionProblem { Query = TensorView.Of(q, 2, 2, sq, d), Key = TensorView.Of(k, 2, 1, sk, d), Value = TensorView.Of(v, 2, 1, sk, dv), Causal = causal };
                using var workspace = new Workspace(device);
                Attention.Forward(device, problem, TensorView.Of(o, 2, 2, sq, dv), TensorView.Of(l, 2, 2, sq, 2), workspace);
                for (int i = 0; i < l.Length; i += 2) l[i + 1] = 0;
                return [.. o, .. l];
            }
            float[] ours = Run(DeviceUnderTest.Device), cpu = Run(ComputeDevice.Cpu);
            double worst = 0;
            for (int i = 0; i < ours.Length; i++)
                if (ours[i] != cpu[i]) worst = Math.Max(worst, double.IsNaN(ours[i] - cpu[i]) ? 1e9 : Math.Abs(ours[i] - cpu[i]));
            output.WriteLine($"{sq} {sk} {d} {dv} {causal}: {worst}");
        }
    }
}
