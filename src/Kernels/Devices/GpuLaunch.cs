using System.Runtime.CompilerServices;

namespace TransformerKernels;

// Kernels of the user's, between the library's, on one stream.
public sealed partial class GpuDevice
{
    /// <summary>Queues a kernel of the user's on the device's stream: after everything queued before it, before everything queued after it.</summary>
    /// <param name="kernel">
    /// A public static method, which <see cref="GpuTensor{T}"/> describes. It is compiled on its first use, a generic one once per struct.
    /// </param>
    /// <param name="groups">How many groups of threads, side by side; with 0 nothing is queued.</param>
    /// <param name="groupSize">The threads of a group; 256 works on every device that can be opened.</param>
    /// <param name="arguments">A public struct of numbers and tensors (from <see cref="Tensor{T}"/>), the same for every thread.</param>
    /// <exception cref="NotSupportedException">The device has no groups of that size; or the kernel doesn't compile, the message says why.</exception>
    /// <exception cref="OperationCanceledException">The token of <see cref="With"/> was cancelled; nothing is queued.</exception>
    public void Launch<T>(Action<T> kernel, int groups, int groupSize, T arguments) where T : struct
    {
        CheckLaunch(kernel, groups, groupSize);
        if (groups > 0)
            Queue.Launch(kernel, groups, groupSize, arguments);
    }

    /// <summary>Queues a kernel of the user's that takes two structs, for instance a formula and what it is applied to.</summary>
    /// <inheritdoc cref="Launch{T}(Action{T}, int, int, T)"/>
    /// <param name="kernel">See <see cref="Launch{T}(Action{T}, int, int, T)"/>.</param>
    /// <param name="groups">How many groups of threads; with 0 nothing is queued.</param>
    /// <param name="groupSize">The threads of a group.</param>
    /// <param name="first">A public struct, or a number.</param>
    /// <param name="second">A public struct, or a number.</param>
    public void Launch<T1, T2>(Action<T1, T2> kernel, int groups, int groupSize, T1 first, T2 second) where T1 : struct where T2 : struct
    {
        CheckLaunch(kernel, groups, groupSize);
        if (groups > 0)
            Queue.Launch(kernel, groups, groupSize, first, second);
    }

    /// <summary>A tensor as a kernel's argument, for the launch that follows: make it anew for each launch.</summary>
    /// <typeparam name="T">float, int, long, byte for bool, ushort for the bits of bfloat16 and float16.</typeparam>
    /// <param name="view">A tensor of at most four axes that this device allocated, or absent. What the kernel writes must not share addresses.</param>
    /// <param name="name">What to call it in errors.</param>
    /// <exception cref="ArgumentException">It lies in other memory, holds another type, or has more axes.</exception>
    public GpuTensor<T> Tensor<T>(TensorView view, [CallerArgumentExpression(nameof(view))] string name = "") where T : unmanaged
    {
        ElementType[] types = GpuTensor.Types<T>();
        if (view.IsPresent)
        {
            if (view.Rank > GpuTensor<T>.MaximumRank)
                throw new ArgumentException($"{name} has {view.Rank} axes; a kernel takes at most {GpuTensor<T>.MaximumRank}.", name);
            Span<long> any = stackalloc long[view.Rank];
            any.Fill(-1);
            Require.Input(this, view, name, types, any);
        }
        return new GpuTensor<T>(this, view, name);
    }

    private void CheckLaunch(Delegate kernel, int groups, int groupSize)
    {
        ArgumentNullException.ThrowIfNull(kernel);
        ArgumentOutOfRangeException.ThrowIfNegative(groups);
        ArgumentOutOfRangeException.ThrowIfLessThan(groupSize, 1);
        if (kernel.Target is not null)
            throw new ArgumentException($"{kernel.Method.Name} is no static method; a kernel takes what it needs as its arguments.", nameof(kernel));
        cancellation.ThrowIfCancellationRequested();
    }
}
