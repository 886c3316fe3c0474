namespace TransformerKernels.Tests;

/// <summary>Numbers that a seed determines.</summary>
public static class Seeded
{
    public static float[] Normal(long count, int seed, float scale = 1)
    {
        var numbers = new float[count];
        Normal(numbers, seed, scale);
        return numbers;
    }

    public static void Normal(Span<float> numbers, int seed, float scale = 1)
    {
        var random = new Random(seed);
        for (int i = 0; i < numbers.Length; i++)
        {
            double radius = Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())), angle = 2 * Math.PI * random.NextDouble();
            numbers[i] = (float)(scale * radius * Math.Cos(angle));
        }
    }

    public static bool[] Mask(long count, int seed, double kept = 0.7)
    {
        var random = new Random(seed);
        var mask = new bool[count];
        for (int i = 0; i < count; i++)
            mask[i] = random.NextDouble() < kept;
        return mask;
    }
}
