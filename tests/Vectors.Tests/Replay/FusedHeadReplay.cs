using System.Numerics;
using TransformerKernels.Oracle;

namespace TransformerKernels.Tests;

/// <summary>TRL's fused head: every number of a token at once, from the logits that it never stores; its loss is their mean.</summary>
public sealed class FusedHeadReplay : IReplay
{
    private const long Ignored = -100;

    public bool Owns(VectorCase vector) => vector.Folder == "trl" && vector.Text("function") == "add_fused_lm_head";

    public Results<float> Library(VectorCase vector) => Run<float>(vector, library: true);

    public Results<T>? Oracle<T>(VectorCase vector) where T : unmanaged, IFloatingPointIeee754<T> => Run<T>(vector, library: false);

    // Its gradients are float32 whatever the logits are.
    public double? ReferenceError(VectorCase vector) => 2e-5;

    private static Results<T> Run<T>(VectorCase vector, bool library) where T : unmanaged, IFloatingPointIeee754<T>
    {
        vector.KnowsOnly(["function", "temperature", "num_items_in_batch", "final_logit_softcapping", "logit_scale"], ["logits", "labels", "bias", "upstream_log_probs", "upstream_entropy"]);
        VectorTensor logits = vector.Need("logits"), labels = vector.Need("labels");
        int length = labels.Shape[1];
        double scale = vector.Number("logit_scale") ?? 1;
        if (scale != 1 && vector.Input("bias") is not null)
            throw new NotReplayedException("a scale of logits beside a bias");
        // Logits at t meet the label at t + 1; the last ones meet none.
        bool Meets(int row) => row % length < length - 1;
        int[] rows = [.. Enumerable.Range(0, labels.Count)];
        long[] targets = [.. rows.Select(row => Meets(row) ? labels.Integers[row + 1] : Ignored)];
        var tokens = new TokenLogits(Array.ConvertAll(logits.Data, x => scale * x), logits.Shape[^1], targets)
        {
            Shaping = new(vector.Input("bias")?.Data, vector.Number("final_logit_softcapping") ?? 0, vector.Number("temperature") ?? 1),
        };
        TokenResult<T> forward = tokens.Forward<T>(library);
        long[] likeliest = tokens.Argmax(library);
        bool[] counts = [.. targets.Select(target => target != Ignored)];
        var results = new Results<T>();
        void Output(string name, Func<int, T> of) => results.Output(name, [.. rows.Where(Meets).Select(of)]);
        Output("log_probs", row => forward.LogProb[row]);
        Output("entropy", row => forward.Entropy[row]);
        Output("log_sum_sq_probs", row => counts[row] ? T.Log(forward.SumOfSquares[row]) : T.Zero);
        T[] mean = tokens.MeanLogit<T>(library);
        Output("mean_logits", row => mean[row]);
        Output("is_top1", row => counts[row] && likeliest[row] == targets[row] ? T.One : T.Zero);
        Output("label_mask", row => counts[row] ? T.One : T.Zero);
        double sum = forward.LogProb.Sum(double.CreateTruncating);
        results.Output("loss", [T.CreateTruncating(-sum / (vector.Number("num_items_in_batch") ?? counts.Count(counted => counted)))]);

        double[] Upstream(string name)
        {
            var given = new Queue<double>(vector.Need(name).Data);
            return [.. rows.Select(row => Meets(row) ? given.Dequeue() : 0)];
        }
        results.Gradient("logits", Array.ConvertAll(tokens.Backward<T>(library, Upstream("upstream_log_probs"), null, Upstream("upstream_entropy")), x => x * T.CreateTruncating(scale)));
        return results;
    }
}
