using System.Reflection;
using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace TransformerKernels.Benchmarks;

/// <summary>Loads TorchSharp on the CPU, if this system can.</summary>
internal static partial class TorchPeer
{
    /// <summary>Loads libtorch and gives it as many threads as ours has. Returns null, or why it doesn't load.</summary>
    public static string? Load(int threads)
    {
        if (FindLibraries() is not { } libraries)
            return "there is no libtorch for this system in the build";
        // libtorch's idle threads would otherwise spin on the cores while ours is timed. Its OpenMP reads the process's own environment once, when
        // it is loaded; .NET keeps a copy of its own.
        if (!OperatingSystem.IsWindows())
            SetEnvironmentVariable("OMP_WAIT_POLICY", "passive", 1);
        try
        {
            // In the order of their dependence; TorchSharp then finds them by their names.
            foreach (string library in libraries)
                NativeLibrary.Load(library);
            set_num_threads(threads);
            return null;
        }
        catch (Exception exception) when (exception is DllNotFoundException or TypeInitializationException or NotSupportedException or BadImageFormatException)
        {
            return Reason(exception);
        }
    }

    public static string Version => __version__;

    /// <summary>A tensor of the same values. It belongs to the scope in which it is made.</summary>
    public static Tensor Copy(TensorBuffer buffer)
    {
        Tensor tensor = empty(buffer.Shape.ToArray(), dtype: buffer.Type switch
        {
            ElementType.Float32 => ScalarType.Float32,
            ElementType.BFloat16 => ScalarType.BFloat16,
            ElementType.Int64 => ScalarType.Int64,
            ElementType.Bool => ScalarType.Bool,
            ElementType other => throw new NotSupportedException($"Tensors of {other} aren't copied to the peer."),
        });
        switch (buffer.Type)
        {
            case ElementType.Float32: buffer.AsSpan<float>().CopyTo(MemoryMarshal.Cast<byte, float>(tensor.bytes)); break;
            case ElementType.BFloat16: MemoryMarshal.AsBytes(buffer.AsSpan<BFloat16>()).CopyTo(tensor.bytes); break;
            case ElementType.Int64: buffer.AsSpan<long>().CopyTo(MemoryMarshal.Cast<byte, long>(tensor.bytes)); break;
            default: MemoryMarshal.AsBytes(buffer.AsSpan<bool>()).CopyTo(tensor.bytes); break;
        }
        return tensor;
    }

    private static string[]? FindLibraries()
    {
        string? package = Assembly.GetExecutingAssembly().GetCustomAttributes<AssemblyMetadataAttribute>().FirstOrDefault(entry => entry.Key == "LibTorch")?.Value;
        if (string.IsNullOrEmpty(package))
            return null;
        (string system, string prefix, string suffix) =
            OperatingSystem.IsWindows() ? ("win-x64", "", ".dll") : OperatingSystem.IsMacOS() ? ("osx-arm64", "lib", ".dylib") : ("linux-x64", "lib", ".so");
        string libtorch = Path.Combine(package, "runtimes", system, "native");
        return
        [
            Path.Combine(libtorch, $"{prefix}torch_cpu{suffix}"),
            Path.Combine(libtorch, $"{prefix}torch{suffix}"),
            Path.Combine(AppContext.BaseDirectory, "runtimes", system, "native", $"{prefix}LibTorchSharp{suffix}"),
        ];
    }

    // The loader's message begins with general advice; what is missing stands in its last line.
    private static string Reason(Exception exception) =>
        exception.GetBaseException().Message.Split('\n', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries).Last();

    [LibraryImport("libc", EntryPoint = "setenv", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int SetEnvironmentVariable(string name, string value, int overwrite);
}
