using Xunit;

namespace TransformerKernels.Tests;

/// <summary>A formula over strips has the bits that it has over vectors, whatever its numbers depend on.</summary>
public unsafe class StripTests
{
    private const int Rows = 8;

    private static readonly Spread[] Spreads = [Spread.Constant, Spread.ByKey, Spread.ByQuery, Spread.ByDistance, Spread.ByPair];

    public static TheoryData<string> Names => DualTests.Names;

    [Theory]
    [MemberData(nameof(Names))]
    public void Strips_of_all_spreads_give_what_vectors_give_in_two_directions_at_once(string name)
    {
        foreach (Spread x in Spreads)
        {
            foreach (Spread y in Spreads)
            {
                foreach ((int rows, int vectors) in ((int, int)[])[(Rows, AttentionTiles.Vectors), (3, AttentionTiles.Vectors), (1, 2), (Rows, 2)])
                {
                    Check<Real32>(DualTests.Smooth[name], x, y, rows, vectors);
                    Check<Lanes128>(DualTests.Smooth[name], x, y, rows, vectors);
                    Check<Lanes256>(DualTests.Smooth[name], x, y, rows, vectors);
                    Check<Lanes512>(DualTests.Smooth[name], x, y, rows, vectors);
                }
            }
        }
    }

    private static void Check<V>(DualTests.IFunction function, Spread spreadOfX, Spread spreadOfY, int rows, int vectors) where V : struct, ILanes<V>
    {
        int lanes = vectors * V.Count, pairs = rows * lanes, block = (int)AttentionTiles.Block<V>(), most = rows * block + 2 * block;
        float* each = stackalloc float[V.Count];
        float[] given = new float[4 * most], ours = new float[4 * pairs];
        fixed (float* taken = new float[Floats<V>(200)], numbers = given, to = ours, spare = &ours[3 * pairs])
        {
            StripMemory evaluation;
            StripMemory.Begin<V>(&evaluation, taken, Floats<V>(200), rows, lanes);
            // Pair by pair, for the vectors.
            float* pairsOfX = numbers + 2 * most, pairsOfY = pairsOfX + most;
            Strip<V> x = Fill<V>(spreadOfX, numbers, most, i => 0.01f + i % 37 / 8f, pairsOfX), y = Fill<V>(spreadOfY, numbers + most, most, i => 0.6f + i % 23 / 6f, pairsOfY);
            Strip<V> one = Strip<V>.One, none = Strip<V>.Zero;
            Dual<Strip<V>> both = function.On(new Dual<Strip<V>>(x, Strip<V>.Both(one, none)), new(y, Strip<V>.Both(none, one)));
            Dual<Strip<V>> ofX = function.On(new Dual<Strip<V>>(x, one), new(y, none));
            foreach (Dual<Strip<V>> evaluated in (Dual<Strip<V>>[])[both, ofX])
            {
                evaluated.Value.CopyTo(to, lanes);
                evaluated.Derivative.CopyTo(to + pairs, lanes);
                both.Derivative.CopyTo(to + 2 * pairs, lanes, 1);
                LaneRows laid = evaluated.Value.InLanes(spare, lanes);
                for (int row = 0; row < rows; row++)
                    Assert.Equal(new ReadOnlySpan<float>(to + row * lanes, lanes), new ReadOnlySpan<float>(laid.At(row), lanes));
                for (int at = 0; at < pairs; at += V.Count)
                {
                    V first = V.Load(pairsOfX + at), second = V.Load(pairsOfY + at);
                    Dual<V> byX = function.On(new Dual<V>(first, V.One), new(second, V.Zero)), byY = function.On(new Dual<V>(first, V.Zero), new(second, V.One));
                    int part = at;
                    foreach (V expected in (V[])[byX.Value, byX.Derivative, byY.Derivative])
                    {
                        expected.Store(each);
                        Assert.Equal(new ReadOnlySpan<float>(each, V.Count), new ReadOnlySpan<float>(to + part, V.Count));
                        part += pairs;
                    }
                }
            }
        }
    }

    // A strip of some spread, and its values pair by pair.
    private static Strip<V> Fill<V>(Spread spread, float* memory, int floats, Func<int, float> number, float* pairs) where V : struct, ILanes<V>
    {
        int rows = (int)StripMemory.Current->Rows, lanes = (int)StripMemory.Current->Lanes;
        for (int i = 0; i < floats; i++)
            memory[i] = number(i);
        for (int row = 0; row < rows; row++)
        {
            for (int lane = 0; lane < lanes; lane++)
                pairs[row * lanes + lane] = memory[spread switch { Spread.Constant => 0, Spread.ByKey => row, Spread.ByQuery => lane, Spread.ByDistance => rows - 1 - row + lane, _ => row * lanes + lane }];
        }
        return spread == Spread.Constant ? Strip<V>.From(*memory) : Strip<V>.At(memory, spread);
    }

    // Room for so many strips of pairs.
    private static nint Floats<V>(int strips) where V : struct, ILanes<V>
    {
        SpreadSet<int> taken = default;
        taken[(int)Spread.ByPair] = strips;
        return StripMemory.FloatsOf<V>(taken, Rows);
    }

    [Fact]
    public void The_difference_of_positions_has_a_value_a_distance()
    {
        const int rows = 5, firstQuery = 12, firstKey = 9;
        int lanes = (int)AttentionTiles.Block<Lanes256>();
        float[] ours = new float[rows * lanes];
        fixed (float* taken = new float[Floats<Lanes256>(10)], to = ours)
        {
            StripMemory evaluation;
            StripMemory.Begin<Lanes256>(&evaluation, taken, Floats<Lanes256>(10), rows, lanes);
            Strip<Lanes256> query = Strip<Lanes256>.Positions(Spread.ByQuery, firstQuery), key = Strip<Lanes256>.Positions(Spread.ByKey, firstKey);
            Strip<Lanes256>[] differences = [key - query, query - key, Strip<Lanes256>.Abs(key - query), key - key, key + query];
            Assert.Equal((1, 2, 4, 1), (evaluation.Taken[(int)Spread.ByQuery], evaluation.Taken[(int)Spread.ByKey], evaluation.Taken[(int)Spread.ByDistance], evaluation.Taken[(int)Spread.ByPair]));
            for (int n = 0; n < differences.Length; n++)
            {
                differences[n].CopyTo(to, lanes);
                for (int pair = 0; pair < rows * lanes; pair++)
                {
                    int k = firstKey + pair / lanes, q = firstQuery + pair % lanes;
                    Assert.Equal(n switch { 0 => k - q, 1 => q - k, 2 => Math.Abs(k - q), 3 => 0, _ => k + q }, to[pair]);
                    Assert.False(to[pair] == 0 && float.IsNegative(to[pair]));
                }
            }
        }
    }

    [Fact]
    public void Nothing_takes_no_memory_and_what_depends_on_less_than_the_pair_takes_less()
    {
        int lanes = (int)AttentionTiles.Block<Lanes256>();
        float[] given = new float[Rows * lanes];
        fixed (float* taken = new float[Floats<Lanes256>(10)], numbers = given)
        {
            StripMemory evaluation;
            StripMemory.Begin<Lanes256>(&evaluation, taken, Floats<Lanes256>(10), Rows, lanes);
            Strip<Lanes256> none = Strip<Lanes256>.Zero, one = Strip<Lanes256>.One, pairs = Strip<Lanes256>.At(numbers, Spread.ByPair), queries = Strip<Lanes256>.At(numbers, Spread.ByQuery);
            _ = none * pairs + none / pairs - none;
            _ = one * pairs * one;
            _ = Strip<Lanes256>.Exp(3f * one) + 2f;
            _ = Strip<Lanes256>.Exp(queries + 1f);
            Assert.Equal((2, 0), (evaluation.Taken[(int)Spread.ByQuery], evaluation.Taken[(int)Spread.ByPair]));
            _ = queries * pairs;
            Assert.Equal((2, 1), (evaluation.Taken[(int)Spread.ByQuery], evaluation.Taken[(int)Spread.ByPair]));
            Assert.True(evaluation.Floats(Spread.ByDistance) < evaluation.Floats(Spread.ByPair) / 3);
        }
    }

    [Fact]
    public void Lines_keys_and_rows_are_taken_from_where_they_lie_and_no_float_beyond()
    {
        const int rows = 7, step = 100;
        int lanes = 2 * Lanes256.Count;
        float[] ours = new float[rows * lanes];
        foreach (bool behind in (bool[])[false, true])
        {
            float[] spaced = [.. Enumerable.Range(0, rows * step).Select(i => (float)i)];
            using var line = new GuardedMemory((lanes + rows - 1) * sizeof(float), behind);
            float* numbers = (float*)line.Address;
            for (int i = 0; i < lanes + rows - 1; i++)
                numbers[i] = i;
            fixed (float* taken = new float[Floats<Lanes256>(10)], far = spaced)
            {
                StripMemory evaluation;
                StripMemory.Begin<Lanes256>(&evaluation, taken, Floats<Lanes256>(10), rows, lanes);
                Strip<Lanes256> ofLine = Strip<Lanes256>.Line(numbers + rows - 1), ofRows = Strip<Lanes256>.Rows(far, step);
                Is(pair => rows - 1 - pair / lanes + pair % lanes, ofLine);
                Is(pair => pair / lanes * step + pair % lanes, ofRows);
                Is(pair => -(pair / lanes * step + pair % lanes), -ofRows);
                Is(pair => rows - 1 - pair / lanes + pair % lanes + (pair / lanes * step + pair % lanes), ofLine + ofRows);
                Is(pair => 2 * (pair / lanes * step + pair % lanes), ofRows + ofRows);
                for (int row = 0; row < rows; row++)
                    new Span<float>(far + row * step, lanes).Fill(row);
                Strip<Lanes256> ofKeys = Strip<Lanes256>.Keys(far, step);
                Is(pair => pair / lanes, ofKeys);
                Is(pair => 2 * (pair / lanes), ofKeys + ofKeys);
                Is(pair => pair / lanes * (rows - 1 - pair / lanes + pair % lanes), ofKeys * ofLine);

                void Is(Func<int, float> expected, Strip<Lanes256> strip)
                {
                    fixed (float* to = ours)
                        strip.CopyTo(to, lanes);
                    Assert.Equal(Enumerable.Range(0, ours.Length).Select(expected), ours);
                }
            }
        }
    }
}
