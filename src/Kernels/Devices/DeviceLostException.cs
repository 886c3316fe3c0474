using ILGPU.Runtime;
using ILGPU.Runtime.Cuda;
using ILGPU.Runtime.OpenCL;

namespace TransformerKernels;

/// <summary>A device no longer works: the driver reset it, it was unplugged, or a kernel broke it. What it holds is lost; dispose it and open it again.</summary>
/// <remarks>The driver's own error is the inner exception. A driver may tell of it late: what failed is any of the calls since the last <see cref="GpuDevice.Synchronize"/>.</remarks>
public sealed class DeviceLostException : InvalidOperationException
{
    /// <summary>For devices.</summary>
    public DeviceLostException(string message, Exception? inner) : base(message, inner)
    {
    }
}

/// <summary>What a driver's errors mean.</summary>
internal static class DriverErrors
{
    /// <summary>The device has too little memory.</summary>
    public static bool IsOutOfMemory(AcceleratorException failure) => failure is
        CLException { Error: CLError.CL_MEM_OBJECT_ALLOCATION_FAILURE or CLError.CL_OUT_OF_RESOURCES or CLError.CL_OUT_OF_HOST_MEMORY or CLError.CL_INVALID_BUFFER_SIZE } or
        CudaException { Error: nameof(CudaError.CUDA_ERROR_OUT_OF_MEMORY) };

    /// <summary>For an error of a launch: the kernel wants more registers, shared memory or threads than a group has; nothing ran, nothing is lost.</summary>
    public static bool IsRefusedLaunch(AcceleratorException failure) => failure is
        CLException { Error: CLError.CL_INVALID_WORK_GROUP_SIZE or CLError.CL_INVALID_WORK_ITEM_SIZE or CLError.CL_OUT_OF_RESOURCES } or
        CudaException { Error: nameof(CudaError.CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES) or nameof(CudaError.CUDA_ERROR_INVALID_VALUE) };

    /// <summary>The driver's name of the error.</summary>
    public static string Describe(AcceleratorException failure) => failure switch
    {
        CLException error => error.Error.ToString(),
        CudaException error => error.Error,
        _ => failure.Message,
    };
}
