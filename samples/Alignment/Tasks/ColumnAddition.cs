namespace Alignment;

/// <summary>Adding two numbers of three digits: "347+285=" is answered "2360.", the sum's digits from the ones up, as one writes them on paper, and a full stop.</summary>
/// <remarks>
/// A million questions, each with one right answer. Demonstrations come from a pupil who forgets to carry: more often than not from the ones to the tens,
/// sometimes from the tens to the hundreds. Who imitates the pupil's commonest answer is wrong whenever the ones carry.
/// </remarks>
internal static class ColumnAddition
{
    private const int Digits = 3, Base = 10, Numbers = Base * Base * Base;

    // Above one half, so that imitation learns the mistake; below one half, so that it learns to carry.
    private const double ForgetsToTens = 0.65, ForgetsToHundreds = 0.3;

    private const string Characters = "0123456789+=.";

    public const int Questions = Numbers * Numbers;

    public const int Vocabulary = 13;

    /// <summary>The digits of a sum.</summary>
    public const int AnswerLength = Digits + 1;

    /// <summary>The longest sequence: two numbers, two signs, the answer and its end.</summary>
    public const int SequenceLength = 2 * Digits + 2 + AnswerLength + 1;

    public static int End => Characters.IndexOf('.');

    /// <summary>The tokens of question number <paramref name="question"/>, which is a·1000 + b.</summary>
    public static int[] Prompt(int question) => Encode($"{question / Numbers:D3}+{question % Numbers:D3}=");

    /// <summary>The right answer.</summary>
    public static int[] Answer(int question) => Add(question, carriesToTens: true, carriesToHundreds: true);

    /// <summary>The answer of a pupil who forgets to carry now and then.</summary>
    public static int[] Demonstration(int question, Random random) =>
        Add(question, carriesToTens: random.NextDouble() >= ForgetsToTens, carriesToHundreds: random.NextDouble() >= ForgetsToHundreds);

    /// <summary>The right answer with one digit too large or too small by 1, as after a carry too few or too many.</summary>
    public static int[] Slip(int question, Random random)
    {
        int[] answer = Answer(question);
        int at = random.Next(answer.Length), step = random.Next(2) == 0 ? 1 : Base - 1;
        answer[at] = (answer[at] + step) % Base;
        return answer;
    }

    /// <summary>Prompt, answer and end.</summary>
    public static Example Sequence(int question, IReadOnlyList<int> answer)
    {
        int[] prompt = Prompt(question);
        return new([.. prompt, .. answer, End], prompt.Length);
    }

    /// <summary>Whether an answer is right, as a whole.</summary>
    public static bool IsRight(int question, IReadOnlyList<int> answer) => Answer(question).AsSpan().SequenceEqual([.. answer]);

    public static string Text(IEnumerable<int> tokens) => string.Concat(tokens.Select(token => Characters[token]));

    private static int[] Encode(string text) => [.. text.Select(character => Characters.IndexOf(character))];

    private static int[] Add(int question, bool carriesToTens, bool carriesToHundreds)
    {
        int a = question / Numbers, b = question % Numbers, carry = 0;
        var answer = new int[AnswerLength];
        for (int digit = 0; digit < Digits; digit++, a /= Base, b /= Base)
        {
            int sum = a % Base + b % Base + carry;
            answer[digit] = sum % Base;
            bool forgets = digit == 0 ? !carriesToTens : digit == 1 && !carriesToHundreds;
            carry = forgets ? 0 : sum / Base;
        }
        answer[Digits] = carry;
        return answer;
    }
}
