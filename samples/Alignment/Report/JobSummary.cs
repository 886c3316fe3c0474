using System.Text.Json;

namespace Alignment;

/// <summary>What <c>--json</c> writes: one object with these fields in snake_case.</summary>
/// <param name="AccuracyBefore">Exact answers before alignment; with a checkpoint, the share of held-out pairs whose chosen answer is likelier.</param>
/// <param name="AccuracyAfter">The same after.</param>
/// <param name="RewardMargin">On held-out pairs, after.</param>
/// <param name="RewardAccuracy">On held-out pairs, after.</param>
/// <param name="TokensPerSecond">Training tokens, padding not counted.</param>
/// <param name="Device">The device's name.</param>
/// <param name="Seed">The seed.</param>
/// <param name="Seconds">From start to end.</param>
internal sealed record JobSummary(double AccuracyBefore, double AccuracyAfter, double RewardMargin, double RewardAccuracy, double TokensPerSecond, string Device, int Seed, double Seconds)
{
    private static readonly JsonSerializerOptions Options = new() { PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower, WriteIndented = true };

    public void Write(string path) => File.WriteAllText(path, JsonSerializer.Serialize(this, Options) + "\n");
}
