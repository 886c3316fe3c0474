using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>trl/functions-*: whitening, with and without a mask.</summary>
public sealed class WhiteningReplay : IReplay
{
    public bool Owns(VectorCase vector) => vector.Folder == "trl" && vector.File.StartsWith("functions-", StringComparison.Ordinal)
        && vector.Text("function") is "core.whiten" or "core.masked_whiten";

    public Results<float> Library(VectorCase vector)
    {
        (VectorTensor values, bool[]? mask, bool keepMean) = Read(vector);
        float[] white = values.Floats;
        long rows = values.Shape[0], columns = values.Shape[1];
        GeneralizedAdvantage.Whiten(DeviceUnderTest.Device, TensorView.Of(white, rows, columns), mask is null ? default : TensorView.Of(mask, rows, columns), keepMean);
        var results = new Results<float>();
        results.Output("output", white);
        return results;
    }

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T>
    {
        (VectorTensor values, bool[]? mask, bool keepMean) = Read(vector);
        var results = new Results<T>();
        results.Output("output", AdvantageOracle.Whiten<T>(values.Grid, mask, keepMean).Data);
        return results;
    }

    private static (VectorTensor Values, bool[]? Mask, bool KeepMean) Read(VectorCase vector)
    {
        vector.KnowsOnly(["function", "shift_mean"], ["values", "mask", "upstream"]);
        return (vector.Need("values"), vector.Input("mask")?.Booleans, !vector.Flag("shift_mean"));
    }
}
