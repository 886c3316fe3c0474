using System.Runtime.InteropServices;

namespace TransformerKernels.Tests;

/// <summary>Memory with an inaccessible page right behind it, or right before it: reading or writing one element too many ends the process.</summary>
public sealed unsafe partial class GuardedMemory : IDisposable
{
    private readonly nint pages;
    private readonly nint length;

    /// <param name="bytes">How many.</param>
    /// <param name="guardBehind">Whether the memory ends at the inaccessible page; else it begins at one.</param>
    public GuardedMemory(long bytes, bool guardBehind)
    {
        nint page = Environment.SystemPageSize, inside = ((nint)bytes + page - 1) / page * page;
        length = inside + 2 * page;
        pages = Reserve(length);
        Forbid(pages, page);
        Forbid(pages + page + inside, page);
        Address = guardBehind ? pages + page + inside - (nint)bytes : pages + page;
    }

    public nint Address { get; }

    public void Dispose()
    {
        if (OperatingSystem.IsWindows())
            VirtualFree(pages, 0, 0x8000); // MEM_RELEASE
        else
            munmap(pages, length);
    }

    private static nint Reserve(nint length)
    {
        if (OperatingSystem.IsWindows())
        {
            nint memory = VirtualAlloc(0, length, 0x3000, 0x04); // MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE
            return memory != 0 ? memory : throw new OutOfMemoryException();
        }
        int anonymous = OperatingSystem.IsMacOS() ? 0x1000 : 0x20;
        nint mapped = mmap(0, length, 0x3, 0x2 | anonymous, -1, 0); // PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS
        return mapped != -1 ? mapped : throw new OutOfMemoryException();
    }

    private static void Forbid(nint address, nint length)
    {
        bool done = OperatingSystem.IsWindows() ? VirtualProtect(address, length, 0x01, out _) : mprotect(address, length, 0) == 0; // PAGE_NOACCESS, PROT_NONE
        if (!done)
            throw new InvalidOperationException("The guard page could not be set up.");
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint mmap(nint address, nint length, int protection, int flags, int file, nint offset);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int mprotect(nint address, nint length, int protection);

    [LibraryImport("libc")]
    private static partial int munmap(nint address, nint length);

    [LibraryImport("kernel32")]
    private static partial nint VirtualAlloc(nint address, nint length, uint type, uint protection);

    [LibraryImport("kernel32")]
    [return: MarshalAs(UnmanagedType.Bool)]
    private static partial bool VirtualProtect(nint address, nint length, uint protection, out uint old);

    [LibraryImport("kernel32")]
    [return: MarshalAs(UnmanagedType.Bool)]
    private static partial bool VirtualFree(nint address, nint length, uint type);
}
