using System.Reflection;
using System.Runtime.InteropServices;
using TorchSharp;
using TransformerKernels.Oracle;
using static TorchSharp.torch;

namespace TransformerKernels.Benchmarks;

/// <summary>Loads TorchSharp on the CPU, if this system can.</summary>
internal static partial class TorchPeer
{
    // Of the largest number of a result: float32 after sums of thousands; bfloat16 where a log-prob near −8, a multiple of 1/16, goes through the exponential.
    private const double Tolerance = 1e-4, BFloat16Tolerance = 1.0 / 32;

    // What lies within rounding of a clip's bound may fall on either side of it.
    private const long NumbersToOneOff = 1_000_000;

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

    /// <summary>Runs a form once and compares what it gives with ours.</summary>
    /// <exception cref="ContractException">They differ by more than rounding explains.</exception>
    public static void Check(Peer form, IReadOnlyList<TensorBuffer> ours)
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor?[] theirs = form.Run();
        using var constants = no_grad();
        for (int index = 0; index < ours.Count; index++)
        {
            if (theirs[index] is not { } result)
                continue;
            Tensor expected = Copy(ours[index]);
            double allowed = expected.abs().max().item<float>() * (result.dtype == ScalarType.BFloat16 ? BFloat16Tolerance : Tolerance);
            Tensor errors = (result.to_type(ScalarType.Float32).reshape(expected.shape) - expected).abs_();
            long off = expected.NumberOfElements - (errors <= allowed).sum().item<long>();
            if (off > expected.NumberOfElements / NumbersToOneOff)
                throw new ContractException($"{form.Name}: {off} of {expected.NumberOfElements} numbers of result {index} are more than {allowed} off ours, by {errors.max().item<float>()} at most.");
        }
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
