using System.Runtime.CompilerServices;
using TransformerKernels.Oracle;
using Xunit;

namespace TransformerKernels.Tests;

/// <summary>A long rule may use all that it sees as often as it likes: the memory of its strips is counted for the most that they can take, and one that takes more than was counted is refused.</summary>
public class AttentionLongRuleTests
{
    private static ComputeDevice Device => DeviceUnderTest.Device;

    public static TheoryData<CapturedBy> Structures => [.. Enum.GetValues<CapturedBy>()];

    public static TheoryData<Member> Members => [.. Enum.GetValues<Member>()];

    [Theory]
    [MemberData(nameof(Members))]
    public void Every_member_of_a_place_is_multiplied_into_a_long_rule(Member member)
    {
        foreach (Member other in (Member[])[Member.Head, Member.Batch, Member.Distance, Member.Captured0, member])
            Case(CapturedBy.Head, CapturedBy.Head, CapturedBy.Query, CapturedBy.Pair).Check(Device, new Winding(member, other, 4), new WindingFormula(member, other, 4));
    }

    [Theory]
    [MemberData(nameof(Structures))]
    public void Captured_tensors_of_every_structure_are_multiplied_into_a_long_rule(CapturedBy by)
    {
        foreach (int turns in (int[])[1, 5])
            Case(by).Check(Device, new Winding(Member.Captured0, Member.Captured0, turns), new WindingFormula(Member.Captured0, Member.Captured0, turns));
        foreach (CapturedBy other in Enum.GetValues<CapturedBy>())
        {
            // Of neighbouring structures each gradient alone too.
            foreach (int? wanted in (other - by) is 0 or 1 ? (int?[])[null, 0, 1] : [null])
                Case(wanted, by, other).Check(Device, new Winding(Member.Captured0, Member.Captured1, 3), new WindingFormula(Member.Captured0, Member.Captured1, 3));
        }
    }

    [Fact]
    public void Operations_that_take_many_strips_and_numbers_of_a_formula_are_counted()
    {
        Assert.True(RuleLength.Of(default(Crowded)).IsLong && RuleLength.OfDerivative(default(Crowded), 0b11).IsLong);
        foreach (int? wanted in (int?[])[null, 0, 1])
        {
            AttentionCase.Results results = Case(wanted, CapturedBy.Key, CapturedBy.Pair).Run(Device, default(Crowded));
            Assert.All(results.Output.Concat(results.Query).Concat(results.Key), value => Assert.True(float.IsFinite(value)));
        }
    }

    [Fact]
    public void A_rule_that_isnt_the_same_formula_each_time_is_refused_and_nothing_else_suffers()
    {
        AttentionCase usual = Case(CapturedBy.Head), both = Case(CapturedBy.Head, CapturedBy.Key);
        var rule = new Winding(Member.Captured0, Member.Head, 3);
        AttentionCase.Results before = usual.Run(Device, rule);
        foreach (int constantly in (int[])[2, 4, 6])
        {
            // The third evaluation is the first of the forward pass; then come two and three evaluations for the lengths of the backward pass.
            Fickle.Remaining = constantly;
            InvalidOperationException exception = Assert.Throws<InvalidOperationException>(() => both.Run(Device, default(Fickle)));
            Assert.Contains("same formula", exception.Message, StringComparison.Ordinal);
            Assert.All(before.All.Zip(usual.Run(Device, rule).All), pair => Assert.Equal(pair.First, pair.Second));
        }
    }

    private static AttentionCase Case(params CapturedBy[] structures) => Case(null, structures);

    private static AttentionCase Case(int? wanted, params CapturedBy[] structures)
    {
        const int heads = 2, batch = 2, queries = 19, keys = 67;
        return new()
        {
            Batch = batch, Heads = heads, Queries = queries, Keys = keys, HeadSize = 6, ValueSize = 5, WantedCapture = wanted,
            Captured = [.. structures.Select((by, n) => new CapturedValues(AttentionCase.Numbers(34 + n, 0.5f, by switch
            {
                CapturedBy.Head => [heads],
                CapturedBy.HeadAndDistance => [heads, 9],
                CapturedBy.HeadAndAbsoluteDistance => [heads, 4],
                CapturedBy.Query => [batch, heads, queries],
                CapturedBy.Key => [batch, heads, keys],
                _ => [batch, heads, queries, keys],
            }), by, 3))],
        };
    }
}

/// <summary>What a rule sees beside the score.</summary>
public enum Member
{
    QueryPosition,
    KeyPosition,
    Distance,
    Head,
    Batch,
    Captured0,
    Captured1,
    Captured2,
    Captured3,
}

/// <summary>y = (x·σ(x) + tanh(x) + softplus(x) + ln(1 + |x|)) / 4 of x = score·a, then so many times y = 0.9·y + 0.1·tanh(y·b), of members a and b.</summary>
public readonly struct Winding(Member a, Member b, int turns) : IScoreRule
{
    /// <summary>What positions are divided by.</summary>
    public const float Far = 32;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T>
    {
        T x = score * Of(a, at);
        T y = 0.25f * (x * T.Sigmoid(x) + T.Tanh(x) + T.Softplus(x) + T.Log1p(T.Abs(x)));
        for (int turn = 0; turn < turns; turn++)
            y = 0.9f * y + 0.1f * T.Tanh(y * Of(b, at));
        return y;
    }

    private static T Of<T>(Member member, in ScorePlace<T> at) where T : struct, IReal<T> => member switch
    {
        Member.QueryPosition => at.QueryPosition / Far,
        Member.KeyPosition => at.KeyPosition / Far,
        Member.Distance => at.Distance / Far,
        Member.Head => at.Head,
        Member.Batch => at.Batch,
        Member.Captured0 => at.Captured0,
        Member.Captured1 => at.Captured1,
        Member.Captured2 => at.Captured2,
        _ => at.Captured3,
    };
}

/// <summary>What takes many strips, again and again: smaller numbers, logarithms of sigmoids, choices, bounds and numbers of its own.</summary>
public readonly struct Crowded : IScoreRule
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T>
    {
        T x = score;
        for (int turn = 0; turn < 3; turn++)
        {
            x = T.Min(x * at.Captured0, x + at.Head) + T.LogSigmoid(x + at.Captured1);
            x = T.SelectLess(x, at.Captured1, T.Zero, x) + T.SelectEqual(T.Zero, at.Batch, at.Captured0, T.Zero);
            x = T.Clamp(x / (T.One + T.Abs(x)), T.From(-3), T.From(turn));
        }
        return x;
    }
}

/// <summary>Short so many times, then longer: what a rule mustn't be.</summary>
public readonly struct Fickle : IScoreRule
{
    public static int Remaining;

    [MethodImpl(MethodImplOptions.NoInlining)]
    public T Score<T>(T score, in ScorePlace<T> at) where T : struct, IReal<T> => new Winding(Member.Captured0, Member.Captured1, Interlocked.Decrement(ref Remaining) >= 0 ? 3 : 1000).Score(score, at);
}

/// <summary>The formula of <see cref="Winding"/>.</summary>
public sealed class WindingFormula(Member a, Member b, int turns) : IScoreFormula
{
    public T Score<T>(T score, in PairPlace<T> at) where T : System.Numerics.IFloatingPointIeee754<T> => Of(score, at, out _);

    public ScoreDerivatives<T> Derivatives<T>(T score, in PairPlace<T> at) where T : System.Numerics.IFloatingPointIeee754<T>
    {
        Of(score, at, out ScoreDerivatives<T> derivatives);
        return derivatives;
    }

    private T Of<T>(T score, in PairPlace<T> at, out ScoreDerivatives<T> derivatives) where T : System.Numerics.IFloatingPointIeee754<T>
    {
        T quarter = T.CreateTruncating(0.25f), tenth = T.CreateTruncating(0.1f), most = T.CreateTruncating(0.9f), first = Of(a, at), second = Of(b, at);
        T x = score * first, power = T.Exp(-T.Abs(x)), sigmoid = (x < T.Zero ? power : T.One) / (T.One + power), tanh = T.Tanh(x);
        T y = quarter * (x * sigmoid + tanh + (T.Max(x, T.Zero) + T.LogP1(power)) + T.LogP1(T.Abs(x)));
        T slope = quarter * (sigmoid + x * sigmoid * (T.One - sigmoid) + (T.One - tanh * tanh) + sigmoid + (x == T.Zero ? T.Zero : T.CopySign(T.One, x)) / (T.One + T.Abs(x)));
        T byScore = slope * first, byFirst = slope * score, bySecond = T.Zero;
        for (int turn = 0; turn < turns; turn++)
        {
            T turned = T.Tanh(y * second), bend = tenth * (T.One - turned * turned);
            bySecond = bySecond * (most + bend * second) + bend * y;
            byFirst *= most + bend * second;
            byScore *= most + bend * second;
            y = most * y + tenth * turned;
        }
        derivatives = new(byScore, By(Member.Captured0), By(Member.Captured1), By(Member.Captured2), By(Member.Captured3));
        return y;

        T By(Member member) => (a == member ? byFirst : T.Zero) + (b == member ? bySecond : T.Zero);
    }

    private static T Of<T>(Member member, in PairPlace<T> at) where T : System.Numerics.IFloatingPointIeee754<T> => member switch
    {
        Member.QueryPosition => at.QueryPosition / T.CreateTruncating(Winding.Far),
        Member.KeyPosition => at.KeyPosition / T.CreateTruncating(Winding.Far),
        Member.Distance => at.Distance / T.CreateTruncating(Winding.Far),
        Member.Head => at.Head,
        Member.Batch => at.Batch,
        Member.Captured0 => at.Captured0,
        Member.Captured1 => at.Captured1,
        Member.Captured2 => at.Captured2,
        _ => at.Captured3,
    };
}
