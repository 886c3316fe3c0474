using System.Numerics;

namespace TransformerKernels.Oracle;

/// <summary>Attention as it is defined: every score, every weight, one after the other.</summary>
/// <remarks>
/// s = scale · q·k; z = softcap(formula(s)) + every bias; hidden pairs are left out; p = e^(z − max) / Σ e^(z − max), a sink being one more term of the sum; output = Σ p·v; log-sum-exp = max + ln Σ e^(z − max).
/// Query i stands at i + offset; distance = key − that. A pair is hidden by causality, by the mask, by its sequence's length, by a bias of −∞ and by a formula that says −∞: then neither its
/// key nor its value is looked at. A query that sees no key has output 0, log-sum-exp −∞ (or its sink) and gradients 0.
/// </remarks>
public static class AttentionOracle
{
    public static AttentionResult<T> Forward<T>(AttentionInputs inputs) where T : IFloatingPointIeee754<T>
    {
        var problem = new Problem<T>(inputs);
        var output = Grid.Zeros<T>(problem.Batch, problem.Heads, problem.Queries, problem.Value.Shape[3]);
        var logSumExp = Grid.Zeros<T>(problem.Batch, problem.Heads, problem.Queries);
        for (int b = 0; b < problem.Batch; b++)
        {
            for (int h = 0; h < problem.Heads; h++)
            {
                for (int i = 0; i < problem.Queries; i++)
                {
                    (List<Visible<T>> row, T sum, _) = problem.Row(b, h, i);
                    logSumExp[b, h, i] = sum;
                    problem.Output(b, h, row, output.Row(b, h, i));
                }
            }
        }
        return new(output, logSumExp);
    }

    /// <summary>The gradients of Σ output·upstream + Σ logSumExp·logSumExpUpstream; rows that see no key leave out the latter.</summary>
    public static AttentionGradient<T> Backward<T>(AttentionInputs inputs, Grid<double> upstream, Grid<double>? logSumExpUpstream = null)
        where T : IFloatingPointIeee754<T>
    {
        var problem = new Problem<T>(inputs);
        Grid<T> dOutput = upstream.To<T>();
        Grid<T>? dLogSumExp = logSumExpUpstream?.To<T>();
        var dQuery = Grid.Zeros<T>(inputs.Query.Shape);
        var dKey = Grid.Zeros<T>(inputs.Key.Shape);
        var dValue = Grid.Zeros<T>(inputs.Value.Shape);
        Grid<T>? dSlopes = inputs.Slopes is null ? null : Grid.Zeros<T>(inputs.Slopes.Shape), slopesMagnitude = dSlopes?.To<T>();
        Grid<T>? dBias = inputs.DistanceBias is null ? null : Grid.Zeros<T>(inputs.DistanceBias.Shape);
        Grid<T>[] dCaptured = [.. inputs.Captured.Select(captured => Grid.Zeros<T>(captured.Values.Shape))], capturedMagnitude = [.. dCaptured.Select(grid => grid.To<T>())];
        Grid<T>? dTable = Like<T>(inputs.BucketTable), tableMagnitude = Like<T>(inputs.BucketTable);
        Grid<T>? dCells = Like<T>(inputs.CellTable), cellsMagnitude = Like<T>(inputs.CellTable);
        Grid<T>? dSinks = Like<T>(inputs.Sinks), sinksMagnitude = Like<T>(inputs.Sinks);
        Grid<T>? dDense = Like<T>(inputs.DenseBias), dRow = Like<T>(inputs.RowBias), dColumn = Like<T>(inputs.ColumnBias);
        Grid<T>? denseMagnitude = Like<T>(inputs.DenseBias), rowMagnitude = Like<T>(inputs.RowBias), columnMagnitude = Like<T>(inputs.ColumnBias);
        var output = new T[inputs.Value.Shape[3]];
        for (int b = 0; b < problem.Batch; b++)
        {
            for (int h = 0; h < problem.Heads; h++)
            {
                int hk = problem.KeyHead(h);
                for (int i = 0; i < problem.Queries; i++)
                {
                    (List<Visible<T>> row, _, T sinkWeight) = problem.Row(b, h, i);
                    Span<T> dO = dOutput.Row(b, h, i), query = problem.Query.Row(b, h, i);
                    problem.Output(b, h, row, output);
                    T average = Dot(dO, output) - (dLogSumExp is null ? T.Zero : dLogSumExp[b, h, i]);
                    if (dSinks is not null && sinkWeight != T.Zero) // whatever arrives, a sink that takes nothing gets nothing
                    {
                        T term = sinkWeight * average;
                        dSinks[h] -= term;
                        sinksMagnitude![h] += T.Abs(term);
                    }
                    foreach (Visible<T> pair in row)
                    {
                        int j = pair.Key, distance = problem.Distance(b, i, j);
                        T dz = pair.Weight * (Dot(dO, problem.Value.Row(b, hk, j)) - average);
                        Add(dValue.Row(b, hk, j), pair.Weight, dO);
                        if (dSlopes is not null)
                        {
                            T term = dz * T.CreateTruncating(Math.Abs(distance));
                            problem.Slope(dSlopes, b, h) -= term;
                            problem.Slope(slopesMagnitude!, b, h) += T.Abs(term);
                        }
                        if (dBias is not null)
                            dBias[h, distance + problem.Centre] += dz;
                        if (dTable is not null)
                        {
                            dTable[problem.Bucket(distance), h] += dz;
                            tableMagnitude![problem.Bucket(distance), h] += T.Abs(dz);
                        }
                        if (dCells is not null)
                        {
                            dCells[problem.Cell(b, i, j), h] += dz;
                            cellsMagnitude![problem.Cell(b, i, j), h] += T.Abs(dz);
                        }
                        if (dDense is not null)
                        {
                            dDense[b, h, i, j] += dz;
                            denseMagnitude![b, h, i, j] += T.Abs(dz);
                        }
                        if (dRow is not null)
                        {
                            dRow[b, h, i] += dz;
                            rowMagnitude![b, h, i] += T.Abs(dz);
                        }
                        if (dColumn is not null)
                        {
                            dColumn[b, h, j] += dz;
                            columnMagnitude![b, h, j] += T.Abs(dz);
                        }
                        T ds = dz * problem.CapSlope(pair.Score, b, h, i, j);
                        if (inputs.Formula is { } formula)
                        {
                            ScoreDerivatives<T> derivatives = formula.Derivatives(pair.Score, problem.Place(b, h, i, j));
                            for (int c = 0; c < dCaptured.Length; c++)
                            {
                                T term = ds * derivatives.Captured(c);
                                inputs.Captured[c].At(dCaptured[c], b, h, i, j, distance) += term;
                                inputs.Captured[c].At(capturedMagnitude[c], b, h, i, j, distance) += T.Abs(term);
                            }
                            ds *= derivatives.Score;
                        }
                        Add(dQuery.Row(b, h, i), problem.Scale * ds, problem.Key.Row(b, hk, j));
                        Add(dKey.Row(b, hk, j), problem.Scale * ds, query);
                    }
                }
            }
        }
        return new(dQuery, dKey, dValue, dSlopes, dBias, dCaptured, slopesMagnitude, capturedMagnitude)
        {
            CellTable = dCells, CellTableMagnitude = cellsMagnitude, Sinks = dSinks, SinksMagnitude = sinksMagnitude, BucketTable = dTable, BucketTableMagnitude = tableMagnitude, DenseBias = dDense, RowBias = dRow, ColumnBias = dColumn,
            DenseBiasMagnitude = denseMagnitude, RowBiasMagnitude = rowMagnitude, ColumnBiasMagnitude = columnMagnitude,
        };
    }

    /// <summary>T5's bucket of a distance.</summary>
    public static int Bucket(int distance, int buckets, int maximumDistance, bool bidirectional)
    {
        int n = Math.Max(-distance, 0), first = 0;
        if (bidirectional)
        {
            buckets /= 2;
            n = Math.Abs(distance);
            first = distance > 0 ? buckets : 0;
        }
        int exact = buckets / 2;
        double share = Math.Log(n / (double)exact) / Math.Log(maximumDistance / (double)exact);
        return first + (n < exact ? n : Math.Min(exact + (int)(share * (buckets - exact)), buckets - 1));
    }

    private static Grid<T>? Like<T>(Grid<double>? grid) where T : INumberBase<T> => grid is null ? null : Grid.Zeros<T>(grid.Shape);

    private static T Dot<T>(ReadOnlySpan<T> a, ReadOnlySpan<T> b) where T : IFloatingPointIeee754<T>
    {
        T sum = T.Zero;
        for (int e = 0; e < a.Length; e++)
            sum += a[e] * b[e];
        return sum;
    }

    private static void Add<T>(Span<T> sum, T factor, ReadOnlySpan<T> terms) where T : IFloatingPointIeee754<T>
    {
        for (int e = 0; e < sum.Length; e++)
            sum[e] += factor * terms[e];
    }

    // A key that a query sees: s before the formula, and its weight p.
    private readonly record struct Visible<T>(int Key, T Score, T Weight);

    private sealed class Problem<T> where T : IFloatingPointIeee754<T>
    {
        private readonly AttentionInputs inputs;
        private readonly Grid<T>? slopes, bias, table, cells, dense, rows, columns, sinks;
        private readonly Grid<T>[] captured;

        public Problem(AttentionInputs inputs)
        {
            this.inputs = inputs;
            Query = inputs.Query.To<T>();
            Key = inputs.Key.To<T>();
            Value = inputs.Value.To<T>();
            slopes = inputs.Slopes?.To<T>();
            bias = inputs.DistanceBias?.To<T>();
            table = inputs.BucketTable?.To<T>();
            sinks = inputs.Sinks?.To<T>();
            cells = inputs.CellTable?.To<T>();
            dense = inputs.DenseBias?.To<T>();
            rows = inputs.RowBias?.To<T>();
            columns = inputs.ColumnBias?.To<T>();
            captured = [.. inputs.Captured.Select(c => c.Values.To<T>())];
            (Batch, Heads, Queries, Keys) = (Query.Shape[0], Query.Shape[1], Query.Shape[2], Key.Shape[2]);
            Scale = T.CreateTruncating(inputs.Scale ?? 1 / Math.Sqrt(Query.Shape[3]));
            Centre = inputs.DistanceCentre ?? Keys - 1;
        }

        public Grid<T> Query { get; }
        public Grid<T> Key { get; }
        public Grid<T> Value { get; }
        public int Batch { get; }
        public int Heads { get; }
        public int Queries { get; }
        public int Keys { get; }
        public T Scale { get; }
        public int Centre { get; }

        public int KeyHead(int head) => head / (Heads / Key.Shape[1]);

        public int Position(int batch, int query) => query + (inputs.QueryOffsets?[batch] ?? inputs.QueryOffset ?? Keys - Queries);

        public int Distance(int batch, int query, int key) => key - Position(batch, query);

        public ref T Slope(Grid<T> slopes, int batch, int head)
        {
            if (slopes.Shape.Length == 2)
                return ref slopes[batch, head];
            return ref slopes[head];
        }

        public PairPlace<T> Place(int b, int h, int i, int j)
        {
            int distance = Distance(b, i, j);
            T Captured(int c) => c < captured.Length ? inputs.Captured[c].At(captured[c], b, h, i, j, distance) : T.Zero;
            return new(T.CreateTruncating(Position(b, i)), T.CreateTruncating(j), T.CreateTruncating(h), T.CreateTruncating(b),
                Captured(0), Captured(1), Captured(2), Captured(3));
        }

        public int Bucket(int distance) => AttentionOracle.Bucket(distance, inputs.BucketTable!.Shape[0], inputs.MaximumDistance, inputs.IsBidirectional);

        /// <summary>The row of the table by two coordinates.</summary>
        public int Cell(int batch, int query, int key)
        {
            int height = inputs.WindowHeight, width = inputs.WindowWidth, at = Position(batch, query);
            return (at / width - key / width + height - 1) * (2 * width - 1) + at % width - key % width + width - 1;
        }

        /// <summary>The derivative of the softcap at a pair whose score before the formula is this.</summary>
        public T CapSlope(T score, int b, int h, int i, int j)
        {
            if (inputs.Softcap is not { } cap)
                return T.One;
            T tanh = T.Tanh((inputs.Formula is { } formula ? formula.Score(score, Place(b, h, i, j)) : score) / T.CreateTruncating(cap));
            return T.One - tanh * tanh;
        }

        /// <summary>The keys that a query sees, with their weights, the log-sum-exp, and the sink's weight.</summary>
        public (List<Visible<T>> Row, T LogSumExp, T SinkWeight) Row(int b, int h, int i)
        {
            var row = new List<Visible<T>>();
            var scores = new List<T>();
            T largest = T.NegativeInfinity;
            for (int j = 0; j < Keys; j++)
            {
                int distance = Distance(b, i, j);
                if ((inputs.Causal && distance > 0) || j >= (inputs.KeyLengths?[b] ?? Keys) || inputs.Mask?[b, h, i, j] == 0)
                    continue;
                T added = T.Zero;
                if (slopes is not null)
                    added -= Slope(slopes, b, h) * T.CreateTruncating(Math.Abs(distance));
                if (bias is not null)
                    added += bias[h, distance + Centre];
                if (table is not null)
                    added += table[Bucket(distance), h];
                if (cells is not null)
                    added += cells[Cell(b, i, j), h];
                if (dense is not null)
                    added += dense[b, h, i, j];
                if (rows is not null)
                    added += rows[b, h, i];
                if (columns is not null)
                    added += columns[b, h, j];
                if (T.IsNegativeInfinity(added))
                    continue;
                T score = Scale * Dot(Query.Row(b, h, i), Key.Row(b, KeyHead(h), j));
                T changed = inputs.Formula is { } formula ? formula.Score(score, Place(b, h, i, j)) : score;
                if (T.IsNegativeInfinity(changed))
                    continue;
                if (inputs.Softcap is { } cap)
                    changed = T.CreateTruncating(cap) * T.Tanh(changed / T.CreateTruncating(cap));
                T z = changed + added;
                largest = T.Max(largest, z);
                row.Add(new(j, score, T.Zero));
                scores.Add(z);
            }
            if (sinks is not null)
                largest = T.Max(largest, sinks[h]);
            if (row.Count == 0 && T.IsNegativeInfinity(largest))
                return (row, largest, T.Zero);
            T ofSink = sinks is null ? T.Zero : T.Exp(sinks[h] - largest), sum = ofSink;
            foreach (T z in scores)
                sum += T.Exp(z - largest);
            for (int n = 0; n < row.Count; n++)
                row[n] = row[n] with { Weight = T.Exp(scores[n] - largest) / sum };
            return (row, largest + T.Log(sum), ofSink / sum);
        }

        /// <summary>Σ p·v.</summary>
        public void Output(int b, int h, List<Visible<T>> row, Span<T> output)
        {
            output.Clear();
            foreach (Visible<T> pair in row)
                Add(output, pair.Weight, Value.Row(b, KeyHead(h), pair.Key));
        }
    }
}
