using System.Reflection;
using Xunit;
using Xunit.v3;

namespace TransformerKernels.Tests;

/// <summary>Gives attention's tiles one side in all tests of a class, whatever their shapes are.</summary>
[AttributeUsage(AttributeTargets.Class)]
public sealed class TilesAttribute(int side) : Attribute
{
    public int Side => side;

    /// <summary>What the running test's class asks for; 0 if it doesn't.</summary>
    public static int SideOfThisTest => (TestContext.Current.TestClass as IXunitTestClass)?.Class.GetCustomAttribute<TilesAttribute>()?.Side ?? 0;
}

/// <summary>The CPU's tests of attention with the large tile where the shapes ask for the small one.</summary>
[Tiles(64)]
public class LargeTileAttentionTests : AttentionTests;
