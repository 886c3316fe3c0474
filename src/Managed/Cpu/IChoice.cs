namespace TransformerKernels;

/// <summary>Something that a kernel does or doesn't: a type argument, so that its loop has no branch for it.</summary>
internal interface IChoice
{
    static abstract bool Taken { get; }
}

internal readonly struct Yes : IChoice
{
    public static bool Taken => true;
}

internal readonly struct No : IChoice
{
    public static bool Taken => false;
}
