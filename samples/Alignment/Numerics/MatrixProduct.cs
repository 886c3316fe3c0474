using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;

namespace Alignment;

/// <summary>The matrix products of a linear layer y = x·Wᵀ and of its gradients. Row-major float32; a weight is [outputs, inputs], as Hugging Face stores it.</summary>
/// <remarks>
/// One kernel serves all three: a strip of the right-hand matrix, two vectors wide, is packed into contiguous memory; tiles of six rows by that strip stay in
/// registers while the sum runs. Every element is summed in one order whatever the number of threads, so results are the same bit for bit.
/// </remarks>
internal static unsafe class MatrixProduct
{
    // Rows of a register tile: 6 × 2 accumulators, 2 of the strip and 1 broadcast fit the 16 registers of AVX2.
    private const int TileRows = 6;

    // Terms summed before the tile goes back to memory: a packed strip of so many rows (32 KB with 512-bit vectors) stays in the first-level cache.
    private const int TermsPerBlock = 256;

    // Work items that each thread finds on average, so that none waits long for the last one.
    private const int ItemsPerThread = 4;

    // Fewer multiply-adds than this are done by the calling thread: waking another costs more.
    private const long AloneBelow = 1 << 18;

    private const int Alignment = 64;

    [ThreadStatic]
    private static float* strip;

    /// <summary>y = x·Wᵀ, or y += x·Wᵀ.</summary>
    /// <param name="x">[rows, inputs].</param>
    /// <param name="weight">[outputs, inputs].</param>
    /// <param name="y">[rows, outputs].</param>
    public static void Forward(Team team, ReadOnlySpan<float> x, ReadOnlySpan<float> weight, Span<float> y, int rows, int inputs, int outputs, bool accumulate = false)
    {
        Check(x.Length, (long)rows * inputs, weight.Length, (long)outputs * inputs, y.Length, (long)rows * outputs);
        fixed (float* a = x, b = weight, c = y)
            Multiply(team, new() { A = a, ARow = inputs, AStep = 1, B = b, BColumn = inputs, BStep = 1, C = c, Rows = rows, Columns = outputs, Terms = inputs, Accumulate = accumulate });
    }

    /// <summary>dx = dy·W, or dx += dy·W.</summary>
    /// <param name="dy">[rows, outputs].</param>
    /// <param name="weight">[outputs, inputs].</param>
    /// <param name="dx">[rows, inputs].</param>
    public static void InputGradient(Team team, ReadOnlySpan<float> dy, ReadOnlySpan<float> weight, Span<float> dx, int rows, int inputs, int outputs, bool accumulate = false)
    {
        Check(dy.Length, (long)rows * outputs, weight.Length, (long)outputs * inputs, dx.Length, (long)rows * inputs);
        fixed (float* a = dy, b = weight, c = dx)
            Multiply(team, new() { A = a, ARow = outputs, AStep = 1, B = b, BColumn = 1, BStep = inputs, C = c, Rows = rows, Columns = inputs, Terms = outputs, Accumulate = accumulate });
    }

    /// <summary>dW += dyᵀ·x.</summary>
    /// <param name="dy">[rows, outputs].</param>
    /// <param name="x">[rows, inputs].</param>
    /// <param name="weightGradient">[outputs, inputs], added to.</param>
    public static void WeightGradient(Team team, ReadOnlySpan<float> dy, ReadOnlySpan<float> x, Span<float> weightGradient, int rows, int inputs, int outputs)
    {
        Check(dy.Length, (long)rows * outputs, x.Length, (long)rows * inputs, weightGradient.Length, (long)outputs * inputs);
        fixed (float* a = dy, b = x, c = weightGradient)
            Multiply(team, new() { A = a, ARow = 1, AStep = outputs, B = b, BColumn = 1, BStep = inputs, C = c, Rows = outputs, Columns = inputs, Terms = rows, Accumulate = true });
    }

    private static void Check(long left, long leftNeeded, long right, long rightNeeded, long result, long resultNeeded)
    {
        if (left < leftNeeded || right < rightNeeded || result < resultNeeded)
            throw new ArgumentException($"The matrices need {leftNeeded}, {rightNeeded} and {resultNeeded} elements; they have {left}, {right} and {result}.");
    }

    private static void Multiply(Team team, Product product)
    {
        if (Vector512.IsHardwareAccelerated)
            Multiply<Wide512>(team, product);
        else if (Vector256.IsHardwareAccelerated)
            Multiply<Wide256>(team, product);
        else
            Multiply<Wide128>(team, product);
    }

    private static void Multiply<TWide>(Team team, Product product) where TWide : struct, IWide<TWide>
    {
        int strips = (product.Columns + 2 * TWide.Count - 1) / (2 * TWide.Count);
        int tiles = (product.Rows + TileRows - 1) / TileRows;
        bool alone = (long)product.Rows * product.Columns * product.Terms < AloneBelow;
        int parts = alone ? 1 : Math.Clamp((team.Threads * ItemsPerThread + strips - 1) / Math.Max(strips, 1), 1, Math.Max(tiles, 1));
        product.TilesPerPart = (tiles + parts - 1) / parts;
        parts = product.TilesPerPart == 0 ? 0 : (tiles + product.TilesPerPart - 1) / product.TilesPerPart;
        product.Parts = parts;
        var work = new Work<TWide>(product);
        if (alone)
        {
            for (int item = 0; item < strips * parts; item++)
                work.Run(item);
        }
        else
        {
            team.Run(ref work, strips * parts);
        }
    }

    /// <summary>C[i, j] (+)= Σₚ A[i·ARow + p·AStep] · B[j·BColumn + p·BStep]; C is row-major without gaps.</summary>
    private struct Product
    {
        public float* A, B, C;
        public nint ARow, AStep, BColumn, BStep;
        public int Rows, Columns, Terms, TilesPerPart, Parts;
        public bool Accumulate;
    }

    private readonly struct Work<TWide>(Product product) : IWork where TWide : struct, IWide<TWide>
    {
        private readonly Product p = product;

        // One strip of columns by some tiles of rows.
        public void Run(int item)
        {
            int width = 2 * TWide.Count;
            int column = item / p.Parts * width, columns = Math.Min(width, p.Columns - column);
            int first = item % p.Parts * p.TilesPerPart * TileRows, end = Math.Min(first + p.TilesPerPart * TileRows, p.Rows);
            if (strip == null)
                strip = (float*)NativeMemory.AlignedAlloc(TermsPerBlock * 2 * 16 * sizeof(float), Alignment);
            float* packed = strip;
            float* edge = stackalloc float[TileRows * width];
            bool add = p.Accumulate;
            for (int term = 0; term < p.Terms || term == 0; term += TermsPerBlock)
            {
                int terms = Math.Min(TermsPerBlock, p.Terms - term);
                Pack(p.B + column * p.BColumn + term * p.BStep, packed, columns, width, terms);
                for (int row = first; row < end; row += TileRows)
                {
                    int rows = Math.Min(TileRows, end - row);
                    float* c = p.C + (nint)row * p.Columns + column;
                    float* a = p.A + row * p.ARow + term * p.AStep;
                    if (rows == TileRows && columns == width)
                    {
                        Tile(a, p.ARow, p.AStep, rows, packed, terms, c, p.Columns, add);
                        continue;
                    }
                    if (add)
                        Copy(c, p.Columns, edge, width, rows, columns);
                    Tile(a, p.ARow, p.AStep, rows, packed, terms, edge, width, add);
                    Copy(edge, width, c, p.Columns, rows, columns);
                }
                add = true;
            }
        }

        private void Pack(float* b, float* packed, int columns, int width, int terms)
        {
            if (columns < width)
                NativeMemory.Clear(packed, (nuint)(terms * width * sizeof(float)));
            if (p.BColumn == 1)
            {
                for (int term = 0; term < terms; term++)
                    NativeMemory.Copy(b + term * p.BStep, packed + term * width, (nuint)(columns * sizeof(float)));
                return;
            }
            for (int column = 0; column < columns; column++)
            {
                float* from = b + column * p.BColumn;
                for (int term = 0; term < terms; term++)
                    packed[term * width + column] = from[term * p.BStep];
            }
        }

        private static void Copy(float* from, nint fromRow, float* to, nint toRow, int rows, int columns)
        {
            for (int row = 0; row < rows; row++)
            {
                for (int column = 0; column < columns; column++)
                    to[row * toRow + column] = from[row * fromRow + column];
            }
        }

        // c[6, 2 vectors] (+)= a · packed. Where fewer rows are left the last one is read again; the edge that c then is has room for all.
        private static void Tile(float* a, nint aRow, nint aStep, int rows, float* packed, int terms, float* c, nint cRow, bool add)
        {
            nint last = rows - 1;
            float* a0 = a, a1 = a + Math.Min(1, last) * aRow, a2 = a + Math.Min(2, last) * aRow;
            float* a3 = a + Math.Min(3, last) * aRow, a4 = a + Math.Min(4, last) * aRow, a5 = a + Math.Min(5, last) * aRow;
            TWide c00 = default, c01 = default, c10 = default, c11 = default, c20 = default, c21 = default;
            TWide c30 = default, c31 = default, c40 = default, c41 = default, c50 = default, c51 = default;
            float* end = packed + (nint)terms * 2 * TWide.Count;
            for (nint at = 0; packed < end; packed += 2 * TWide.Count, at += aStep)
            {
                TWide left = TWide.Load(packed), right = TWide.Load(packed + TWide.Count);
                TWide x = TWide.Broadcast(a0 + at);
                c00 = TWide.MultiplyAdd(x, left, c00);
                c01 = TWide.MultiplyAdd(x, right, c01);
                x = TWide.Broadcast(a1 + at);
                c10 = TWide.MultiplyAdd(x, left, c10);
                c11 = TWide.MultiplyAdd(x, right, c11);
                x = TWide.Broadcast(a2 + at);
                c20 = TWide.MultiplyAdd(x, left, c20);
                c21 = TWide.MultiplyAdd(x, right, c21);
                x = TWide.Broadcast(a3 + at);
                c30 = TWide.MultiplyAdd(x, left, c30);
                c31 = TWide.MultiplyAdd(x, right, c31);
                x = TWide.Broadcast(a4 + at);
                c40 = TWide.MultiplyAdd(x, left, c40);
                c41 = TWide.MultiplyAdd(x, right, c41);
                x = TWide.Broadcast(a5 + at);
                c50 = TWide.MultiplyAdd(x, left, c50);
                c51 = TWide.MultiplyAdd(x, right, c51);
            }
            Finish(c, c00, c01, add);
            Finish(c + cRow, c10, c11, add);
            Finish(c + 2 * cRow, c20, c21, add);
            Finish(c + 3 * cRow, c30, c31, add);
            Finish(c + 4 * cRow, c40, c41, add);
            Finish(c + 5 * cRow, c50, c51, add);
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static void Finish(float* c, TWide left, TWide right, bool add)
        {
            if (add)
            {
                left = TWide.Add(left, TWide.Load(c));
                right = TWide.Add(right, TWide.Load(c + TWide.Count));
            }
            left.Store(c);
            right.Store(c + TWide.Count);
        }
    }
}
