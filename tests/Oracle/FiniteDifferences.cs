namespace TransformerKernels.Oracle;

/// <summary>Gradients from values alone.</summary>
public static class FiniteDifferences
{
    // The error of the fourth-order formula is about h⁴ from the curve and 1e-16 / h from rounding: both are below 1e-12 here.
    private const double Step = 1e-3;

    /// <summary>The gradient of <paramref name="loss"/> with respect to every number of <paramref name="variable"/>, which is changed and restored.</summary>
    /// <remarks>(8 (f(x + h) − f(x − h)) − (f(x + 2h) − f(x − 2h))) / 12h. Keep kinks further away than 2h.</remarks>
    public static double[] Gradient(double[] variable, Func<double> loss, double step = Step)
    {
        var gradient = new double[variable.Length];
        for (int i = 0; i < variable.Length; i++)
        {
            double middle = variable[i];
            double At(double x)
            {
                variable[i] = x;
                return loss();
            }
            gradient[i] = (8 * (At(middle + step) - At(middle - step)) - (At(middle + 2 * step) - At(middle - 2 * step))) / (12 * step);
            variable[i] = middle;
        }
        return gradient;
    }
}
