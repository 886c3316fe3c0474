using System.Text.Json.Serialization;

namespace TransformerKernels.Benchmarks;

/// <summary>What was measured of a case, one JSON line each.</summary>
internal sealed record Result
{
    [JsonPropertyName("case")]
    public required string Case { get; init; }

    [JsonPropertyName("shape")]
    public required string Shape { get; init; }

    [JsonPropertyName("device")]
    public required string Device { get; init; }

    [JsonPropertyName("ours_ms")]
    public required double OursMs { get; init; }

    /// <summary>The distance of the quartiles of ours as a share of its median.</summary>
    [JsonPropertyName("spread")]
    public required double Spread { get; init; }

    /// <summary>The peer's fastest form, or why there is none.</summary>
    [JsonPropertyName("peer")]
    public required string Peer { get; init; }

    [JsonPropertyName("peer_ms")]
    public double? PeerMs { get; init; }

    [JsonPropertyName("speedup")]
    public double? Speedup => PeerMs / OursMs;

    [JsonPropertyName("peer_share")]
    public double? PeerShare => FloorMs / PeerMs;

    /// <summary>"peak", "read", "update" or "copy".</summary>
    [JsonPropertyName("limit")]
    public required string Limit { get; init; }

    /// <summary>The limit as measured beside the case: operations or bytes a second.</summary>
    [JsonPropertyName("limit_rate")]
    public required double LimitRate { get; init; }

    /// <summary>The least time that the machine could take.</summary>
    [JsonPropertyName("floor_ms")]
    public required double FloorMs { get; init; }

    [JsonPropertyName("limit_share")]
    public double LimitShare => FloorMs / OursMs;

    /// <summary>The peak of resident memory above what was resident before the call, inputs and outputs included in that.</summary>
    [JsonPropertyName("extra_mb")]
    public double? ExtraMb { get; init; }

    [JsonPropertyName("must")]
    public required double Must { get; init; }

    [JsonPropertyName("aim")]
    public required double Aim { get; init; }

    /// <summary>Whether must and aim are megabytes, the most that it may take.</summary>
    [JsonPropertyName("counts_memory")]
    public bool CountsMemory { get; init; }

    /// <summary>"aim", "must" or "no".</summary>
    [JsonPropertyName("met")]
    public string Met => CountsMemory ? ExtraMb <= Aim ? "aim" : ExtraMb <= Must ? "must" : "no" : LimitShare >= Aim ? "aim" : LimitShare >= Must ? "must" : "no";

    /// <summary>The largest error as a share of what the numerical contract allows.</summary>
    [JsonPropertyName("error")]
    public required double Error { get; init; }

    [JsonPropertyName("rounds")]
    public required int Rounds { get; init; }

}
