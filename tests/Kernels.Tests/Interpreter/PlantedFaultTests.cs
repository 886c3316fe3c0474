using System.Text.RegularExpressions;
using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>Faults planted into the text of kernels that are right without them: the interpreter, or the contract, sees each.</summary>
public sealed class PlantedFaultTests : IDisposable
{
    // Two groups, and memory that ends with the tensor however a device rounds up.
    private const int Pairs = 512;

    private readonly InterpretedDevice interpreted = InterpretedDevice.Open();

    public void Dispose() => interpreted.Dispose();

    [Fact]
    public void A_missing_barrier_is_a_race()
    {
        // Of the sum over a group: the barrier between one halving and the next.
        var fault = Assert.Throws<PtxFault>(() => PairLoss(text => Once(text, @"(?<=:\s+)bar\.sync\t0;(?=\s+setp\.ge\.s32)", "")));
        Assert.Contains("race", fault.Message);
        Assert.Contains("of __shared_alloca0: it reads what thread (", fault.Message);
        Assert.Contains("without a barrier between them", fault.Message);
        Assert.Contains("ld.shared.f32", fault.Message);
    }

    [Fact]
    public void A_barrier_that_some_threads_pass_by_is_named()
    {
        // The barrier of the halving goes behind the branch that half of the threads take.
        var fault = Assert.Throws<PtxFault>(() => PairLoss(text =>
            Once(text, @"bar\.sync\t0;(\s+setp\.ge\.s32.*\s+@%p\d+ bra.*\s+bra\.uni.*\s+L_\d+:)", "$1\n\tbar.sync\t0;")));
        Assert.Contains("\"bar.sync 0\"", fault.Message);
        Assert.Contains("thread (128, 0, 0): it waits at this barrier while thread (0, 0, 0) waits at the one in line", fault.Message);
    }

    [Fact]
    public void One_thread_too_many_in_a_halving_reads_beyond_the_shared_array()
    {
        var fault = Assert.Throws<PtxFault>(() => PairLoss(text => Once(text, @"(?<=bar\.sync\t0;\s+)setp\.ge\.s32", "setp.gt.s32")));
        Assert.Contains("offset 1024 of __shared_alloca0, which has 1024 bytes", fault.Message);
        Assert.Contains("thread (128, 0, 0)", fault.Message);
    }

    [Fact]
    public void A_bound_off_by_one_is_out_of_bounds()
    {
        var fault = Assert.Throws<PtxFault>(() => PairLoss(text => Once(text, @"setp\.lt\.s64", "setp.le.s64")));
        Assert.Contains("out of bounds", fault.Message);
        Assert.Contains($"offset {Pairs * sizeof(float)} of a.Chosen.memory, which has {Pairs * sizeof(float)} bytes", fault.Message);
        Assert.Contains("group (0, 0, 0), thread (0, 0, 0)", fault.Message);
    }

    [Fact]
    public void Two_groups_that_write_the_same_word_race()
    {
        // Every group takes itself for the first.
        var fault = Assert.Throws<PtxFault>(() => PairLoss(text => text.Replace("%ctaid.x", "0", StringComparison.Ordinal)));
        Assert.Contains("writes what group (0, 0, 0) wrote", fault.Message);
    }

    [Fact]
    public void A_swapped_index_breaks_the_contract()
    {
        // Chosen for rejected: nothing is out of bounds, and every number is wrong.
        PairLoss(text => text);
        Assert.Throws<ContractException>(() => PairLoss(text => Regex.Replace(text, @"\[_a_(\d+)(\+64)?\]", match => $"[_a_{match.Groups[1]}{(match.Groups[2].Success ? "" : "+64")}]")));
    }

    [Fact]
    public void A_misaligned_vector_load_is_named()
    {
        Copy(text => text, first: 0);
        var fault = Assert.Throws<PtxFault>(() => Copy(text => Once(text, @"(ld\.v4\.f32\s+\{[^}]*\}, \[%rd\d+)\]", "$1+8]"), first: 0));
        Assert.Contains("16 bytes at", fault.Message);
        Assert.Contains("which isn't aligned to them (offset 8 of a.From)", fault.Message);
        Assert.Contains("ld.v4.f32", fault.Message);

        // And with the text as it is, over a view that begins between two vectors.
        fault = Assert.Throws<PtxFault>(() => Copy(text => text, first: 1));
        Assert.Contains("(offset 0 of a.From)", fault.Message);
    }

    private static string Once(string text, string pattern, string replacement)
    {
        Assert.Matches(pattern, text);
        return new Regex(pattern).Replace(text, replacement, 1);
    }

    // The first kernel's text is the one that is changed.
    private void PairLoss(Func<string, string> plant)
    {
        interpreted.Edit = text => text.Contains("Kernel_Evaluate", StringComparison.Ordinal) ? plant(text) : text;
        GpuDevice device = interpreted.Device;
        float[] chosen = Seeded.Normal(Pairs, 1, 3), rejected = Seeded.Normal(Pairs, 2, 3);
        PreferenceResult<double> oracle = Result<double>();
        PreferenceResult<float> naive = Result<float>();
        using TensorBuffer chosenOnDevice = device.Upload<float>(chosen), rejectedOnDevice = device.Upload<float>(rejected);
        using TensorBuffer loss = device.Allocate(ElementType.Float32, Pairs), metrics = device.Allocate(ElementType.Float32, PreferenceMetrics.Count);
        using var workspace = new Workspace(device);
        PreferenceLoss.Evaluate(device, new PairBatch { Chosen = chosenOnDevice, Rejected = rejectedOnDevice }, new DpoSigmoid(0.3f, 0.1f), new PairOutputs { Loss = loss }, metrics, workspace);
        Contract.Check(loss.ToArray<float>(), oracle.Losses, naive.Losses, Contract.Forward, "loss");

        PreferenceResult<T> Result<T>() where T : System.Numerics.IFloatingPointIeee754<T> => PreferenceOracle.DpoSigmoid<T>(Array.ConvertAll(chosen, x => (double)x),
            Array.ConvertAll(rejected, x => (double)x), null, null, 0.3f, 0.1f, false);
    }

    private void Copy(Func<string, string> plant, int first)
    {
        interpreted.Edit = plant;
        float[] numbers = Enumerable.Range(0, 256).Select(i => (float)i).ToArray();
        using TensorBuffer from = interpreted.Device.Upload<float>(numbers), to = interpreted.Device.Allocate(ElementType.Float32, numbers.Length);
        interpreted.Device.Queue.Launch(VectorKernels.Copy, 1, VectorKernels.GroupSize,
            new VectorArguments { From = ((GpuBuffer)from).Use<float>().SubView(first), To = ((GpuBuffer)to).Use<float>() }, numbers.Length / 4);
        Assert.Equal(numbers, to.ToArray<float>());
    }
}
