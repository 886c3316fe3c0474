namespace Alignment;

/// <summary>A prompt and its answer as one sequence of tokens; what is learned and scored is the answer.</summary>
/// <param name="Tokens">Prompt, answer and whatever ends it.</param>
/// <param name="PromptLength">How many of them are the prompt; at least 1.</param>
internal sealed record Example(int[] Tokens, int PromptLength)
{
    public int AnswerLength => Tokens.Length - PromptLength;
}

/// <summary>Two answers to one prompt, of which the first is preferred.</summary>
internal sealed record PreferencePair(Example Chosen, Example Rejected);
