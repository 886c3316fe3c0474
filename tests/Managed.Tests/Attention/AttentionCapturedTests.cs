using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>A rule with one captured tensor has both of its slopes from one evaluation on CPU devices, in registers or over strips; one between has them from two.</summary>
public class AttentionCapturedTests
{
    private static ComputeDevice Device => DeviceUnderTest.Device;

    public static TheoryData<CapturedBy> Structures => [.. Enum.GetValues<CapturedBy>()];

    [Theory]
    [MemberData(nameof(Structures))]
    public void One_captured_tensor_of_every_structure_agrees_with_the_definition(CapturedBy by)
    {
        foreach ((int queries, int keys) in ((int, int)[])[(5, 5), (67, 71)])
        {
            var captured = new CapturedValues(AttentionCase.Numbers(34, 0.5f, by switch
            {
                CapturedBy.Head => [2],
                CapturedBy.HeadAndDistance => [2, 9],
                CapturedBy.HeadAndAbsoluteDistance => [2, 4],
                CapturedBy.Query => [2, 2, queries],
                CapturedBy.Key => [2, 2, keys],
                _ => [2, 2, queries, keys],
            }), by, 3);
            foreach ((bool causal, float? softcap) in ((bool, float?)[])[(false, null), (true, null), (true, 2)])
            {
                var problem = new AttentionCase { Batch = 2, Queries = queries, Keys = keys, HeadSize = 6, ValueSize = 5, Causal = causal, Softcap = softcap, Slopes = causal ? AttentionCase.Numbers(35, 0.2f, 2) : null, Captured = [captured] };
                problem.Check(Device, default(Gained<PlainScore>), new GainedFormula());
                problem.Check(Device, default(LongWay<Gained<PlainScore>>), new GainedFormula());
                problem.Check(Device, default(Many<Gained<PlainScore>>), new GainedFormula());
            }
        }
    }
}
