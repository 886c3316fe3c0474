using System.Runtime.CompilerServices;
using ILGPU;

namespace TransformerKernels;

// A group takes as many queries of a head as a side of its tile (64, or 16 of short sequences) and up to two sides of columns of the output, and walks over the
// keys that they see, a side at a time:
//
//     S = Q Kᵀ       both staged in slices of 32 columns, summed in registers (4 x 4 a thread, 4 x 1 in the small tile), left in the tile in shared memory
//     row stage      four threads a row: scale, rule, bias, hidden pairs; the row's running maximum and sum; e^(s − maximum) in place of S
//     O += P V       V staged 32 rows at a time, summed in registers (twice as many as of S) after they are scaled to the new maximum
//
// Values of more columns take several groups, each of which computes the scores again. Tiles that causality hides are not visited.
//
// Traffic: a tile of side t reads t · (2d + dv) floats, since Q is staged again for each tile of keys (d and dv up to 2t): with n tiles visited of a head,
// 4 · t · n · (2d + dv) bytes, and once per query 4 · dv written. Without causality n = ⌈Sq / t⌉ · ⌈Sk / t⌉: each key of a head costs Sq / t times
// 4 · (2d + dv) bytes, in the small tile four times as much as in the large one.
//
// Tried: indices of 32 bits for shared memory (no immediate offsets, 1 FFMA in 2.2 instructions of the products' loop instead of 1 in 1.6); writing the
// output from the register tiles (its addresses lived in registers across the loop: the backward pass spilled); stepping through what is staged instead of finding
// each element anew (up to 20 registers more on sm_80 and sm_90, and no faster on PoCL).
//
// Shared memory 38 KB, in the small tile 7 KB. No workspace.
public sealed partial class GpuDevice
{
    // 0: by the shapes.
    private readonly int tileSide;

    /// <summary>A handle of this device whose attention has tiles of the given side whatever the shapes are, for tests that compare them.</summary>
    internal GpuDevice WithTiles(int side) => new(this, cancellation, side);

    /// <inheritdoc/>
    protected internal override long AttentionForwardWorkspaceBytes(in AttentionProblem problem) => 0;

    /// <inheritdoc/>
    protected internal override void AttentionForward<TRule>(in AttentionProblem problem, TRule rule, TensorView output, TensorView logSumExp,
        Workspace workspace)
    {
        AttentionShape shape = AttentionShape.Of(problem);
        LaunchForward(rule, shape, new(this, problem, shape, output, logSumExp));
    }

    private int TileSideOf(in AttentionShape shape) => tileSide != 0 ? tileSide : TileSide.Of(shape);

    private void LaunchForward<TRule>(TRule rule, in AttentionShape shape, in ForwardArguments arguments) where TRule : unmanaged, IScoreRule
    {
        if (TileSideOf(shape) == Side16.Length)
            LaunchForward<TRule, Side16>(rule, shape, arguments);
        else
            LaunchForward<TRule, Side64>(rule, shape, arguments);
    }

    private void LaunchForward<TRule, TSide>(TRule rule, in AttentionShape shape, in ForwardArguments arguments) where TRule : unmanaged, IScoreRule where TSide : struct, ITileSide
    {
        cancellation.ThrowIfCancellationRequested();
        int groups = checked((int)(shape.Batch * shape.Heads * TileSide.Blocks(shape.Queries, TSide.Length) * TileSide.Slices(shape.ValueSize, TSide.Length)));
        if (groups > 0)
            Queue.Launch(AttentionForwardKernels<TSide>.Forward, groups, AttentionForwardKernels<TSide>.GroupSize, rule, arguments);
    }
}

/// <summary>What the forward kernel reads and writes.</summary>
internal readonly struct ForwardArguments
{
    public readonly ScoreArguments Score;
    public readonly GpuMatrices Value, Output, LogSumExp;

    /// <summary>How many columns <see cref="LogSumExp"/> has: none if it isn't wanted, one, or two with what rounding took from the first.</summary>
    public readonly int LogSumExpColumns;

    public ForwardArguments(GpuDevice device, in AttentionProblem problem, in AttentionShape shape, in TensorView output, in TensorView logSumExp)
    {
        Score = new(device, problem, shape);
        Value = new(device, problem.Value, "problem.Value");
        Output = new(device, output, "output");
        LogSumExp = new(device, logSumExp, "logSumExp");
        LogSumExpColumns = !logSumExp.IsPresent ? 0 : logSumExp.Rank == 4 ? 2 : 1;
    }
}

internal static class AttentionForwardKernels<TSide> where TSide : struct, ITileSide
{
    public static int GroupSize => GpuTile<TSide>.GroupSize;

    /// <summary>Output and log-sum-exp of a tile's queries.</summary>
    public static void Forward<TRule>(TRule rule, ForwardArguments a) where TRule : unmanaged, IScoreRule
    {
        ArrayView<float> tile = SharedMemory.Allocate<float>(GpuTile<TSide>.TileFloats);
        ArrayView<float> staging = SharedMemory.Allocate<float>(GpuTile<TSide>.StagingFloats);
        ArrayView<float> lines = SharedMemory.Allocate<float>(GpuTile<TSide>.LinesFloats);
        ArrayView<float> exchange = SharedMemory.Allocate<float>(GroupSize);
        ArrayView<float> factors = SharedMemory.Allocate<float>(GpuTile<TSide>.Side);
        ArrayView<int> flags = SharedMemory.Allocate<int>(GroupSize);

        int thread = Group.IdxX, row = thread / GpuTile<TSide>.ThreadsPerRow, part = thread % GpuTile<TSide>.ThreadsPerRow, y = thread / GpuTile<TSide>.Threads;
        int queries = a.Score.Queries, blocks = (queries + GpuTile<TSide>.Side - 1) / GpuTile<TSide>.Side;
        int valueSize = a.Score.ValueSize, slices = valueSize == 0 ? 1 : (valueSize + GpuTile<TSide>.OutputColumns - 1) / GpuTile<TSide>.OutputColumns;
        int item = Grid.IdxX, column = item % slices * GpuTile<TSide>.OutputColumns;
        item /= slices;
        int i0 = item % blocks * GpuTile<TSide>.Side;
        item /= blocks;
        int head = item % a.Score.Heads, batch = item / a.Score.Heads, keyHead = head / a.Score.HeadsPerKeyHead;
        int rows = queries - i0 < GpuTile<TSide>.Side ? queries - i0 : GpuTile<TSide>.Side, end = a.Score.EndOfKeys(i0, rows);
        GpuMatrix query = a.Score.Query.Of(batch, head), key = a.Score.Key.Of(batch, keyHead), value = a.Value.Of(batch, keyHead);

        RegisterTile low = default, high = default;
        float maximum = float.NegativeInfinity, sum = 0f;
        int j0 = 0;
        do
        {
            int columns = end - j0 < GpuTile<TSide>.Side ? end - j0 : GpuTile<TSide>.Side;
            RegisterTile scores = default;
            GpuTile<TSide>.FillLines(a.Score, lines, batch, head, i0, j0);
            GpuTile<TSide>.AddProducts(ref scores, staging, query, i0, rows, key, j0, columns, a.Score.HeadSize);
            GpuTile<TSide>.Store(scores, tile);
            Group.Barrier();

            float highest = maximum;
            int hides = 0;
            for (int c = part; c < columns && row < rows; c += GpuTile<TSide>.ThreadsPerRow)
            {
                int at = row * GpuTile<TSide>.RowStep + c;
                float z = GpuTile<TSide>.Score(rule, a.Score, lines, batch, head, i0, j0, row, c, tile[at]);
                tile[at] = z;
                highest = z > highest ? z : highest;
                hides |= z == float.NegativeInfinity ? 1 : 0;
            }
            exchange[thread] = highest;
            flags[thread] = hides;
            Group.Barrier();

            int first = row * GpuTile<TSide>.ThreadsPerRow;
            highest = Larger(Larger(exchange[first], exchange[first + 1]), Larger(exchange[first + 2], exchange[first + 3]));
            float reference = highest == float.NegativeInfinity ? 0f : highest;
            float shrink = Real32.Exp(new(maximum - reference)).Value, tileSum = 0f;
            for (int c = part; c < columns && row < rows; c += GpuTile<TSide>.ThreadsPerRow)
            {
                int at = row * GpuTile<TSide>.RowStep + c;
                float z = tile[at];
                float p = Real32.Exp(new(z - reference)).Value;
                tile[at] = z == float.NegativeInfinity ? GpuTile<TSide>.Hidden : p;
                tileSum += p;
            }
            sum = sum * shrink + tileSum;
            maximum = highest;
            if (part == 0)
                factors[row] = shrink;
            Group.Barrier();

            int apart = GpuTile<TSide>.RowsApart;
            float f0 = factors[y], f1 = factors[y + apart], f2 = factors[y + 2 * apart], f3 = factors[y + 3 * apart];
            GpuTile<TSide>.ScaleRows(ref low, f0, f1, f2, f3);
            GpuTile<TSide>.ScaleRows(ref high, f0, f1, f2, f3);
            GpuTile<TSide>.AddTileTimesRows(ref low, ref high, tile, staging, value, j0, columns, column, valueSize, GpuTile<TSide>.RowsHide(flags));
            j0 += GpuTile<TSide>.Side;
        }
        while (j0 < end);

        exchange[thread] = sum;
        Group.Barrier();
        int own = row * GpuTile<TSide>.ThreadsPerRow;
        float total = exchange[own] + exchange[own + 1] + exchange[own + 2] + exchange[own + 3];
        if (part == 0)
            factors[row] = total;
        GpuMatrix output = a.Output.Of(batch, head);
        WriteQuotients(low, tile, output, factors, i0, rows, column, valueSize);
        WriteQuotients(high, tile, output, factors, i0, rows, column + GpuTile<TSide>.Side, valueSize);

        if (part != 0 || row >= rows || column != 0 || a.LogSumExpColumns == 0)
            return;
        GpuMatrix logSumExp = a.LogSumExp.Of(batch, head);
        float rounded = LogSumExp(maximum, total, out float remainder);
        logSumExp[i0 + row, 0] = rounded;
        if (a.LogSumExpColumns == 2)
            logSumExp[i0 + row, 1] = remainder;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Larger(float a, float b) => a > b ? a : b;

    // Σ p v / Σ p; 0 where no key is seen. By way of the tile, so that neighbouring threads write neighbouring columns.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void WriteQuotients(in RegisterTile sums, ArrayView<float> tile, GpuMatrix output, ArrayView<float> totals, int i0, int rows, int column, int size)
    {
        Group.Barrier();
        GpuTile<TSide>.Store(sums, tile);
        Group.Barrier();
        column += Group.IdxX % GpuTile<TSide>.Side;
        for (int row = Group.IdxX / GpuTile<TSide>.Side; row < rows && column < size; row += GroupSize / GpuTile<TSide>.Side)
        {
            float total = totals[row], sum = tile[row * GpuTile<TSide>.RowStep + Group.IdxX % GpuTile<TSide>.Side];
            output[i0 + row, column] = total == 0f ? 0f : sum / total;
        }
    }

    // maximum + ln(sum), to about 1e-9 in two floats. A log-sum-exp that is off by its own rounding would shift all weights of a row in the backward pass.
    //
    // sum = m · 2^e with √½ ≤ m < √2; ln m = 2 (s + s³/3 + s⁵/5 + ...) with s = (m − 1) / (m + 1), of which the first term is carried in two floats.
    // Every product that must be exact is one of numbers of 12 bits, so that it stays exact where a compiler fuses it with an addition.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float LogSumExp(float maximum, float sum, out float remainder)
    {
        const float ln2High = 0.693359375f, ln2Low = -2.12194440e-4f; // as in Elementary: e · ln2High is exact
        remainder = 0f;
        if (sum == 0f)
            return float.NegativeInfinity;
        int bits = BitConverter.SingleToInt32Bits(sum), exponent = (bits - LanesConstants.SqrtHalfBits) >> 23;
        float m = BitConverter.Int32BitsToSingle(bits - (exponent << 23));
        float numerator = m - 1f, denominator = m + 1f, lost = m - (denominator - 1f);
        float s = numerator / denominator;
        float sHigh = Upper(s), sLow = s - sHigh, dHigh = Upper(denominator), dLow = denominator - dHigh;
        float rest = (numerator - sHigh * dHigh - sHigh * dLow - sLow * dHigh - sLow * dLow - s * lost) / denominator;
        float square = s * s;
        float tail = 2f / 13f;
        tail = tail * square + 2f / 11f;
        tail = tail * square + 2f / 9f;
        tail = tail * square + 2f / 7f;
        tail = tail * square + 2f / 5f;
        tail = tail * square + 2f / 3f;
        float small = tail * square * s + 2f * rest + exponent * ln2Low;

        float partial = AddExactly(maximum, exponent * ln2High, out float error0);
        partial = AddExactly(partial, 2f * s, out float error1);
        float rounded = AddExactly(partial, small + error1 + error0, out float error2);
        bool finite = sum - sum == 0f && rounded - rounded == 0f; // the bits of a NaN take apart into numbers
        remainder = finite ? error2 : 0f;
        return finite ? rounded : maximum + sum;
    }

    // The upper 12 bits.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float Upper(float x) => BitConverter.Int32BitsToSingle(BitConverter.SingleToInt32Bits(x) & ~0xFFF);

    // Knuth's two-sum.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static float AddExactly(float a, float b, out float error)
    {
        float sum = a + b, second = sum - a;
        error = a - (sum - second) + (b - second);
        return sum;
    }
}
