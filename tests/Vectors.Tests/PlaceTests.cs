using Xunit;

namespace TransformerKernels.Tests;

public class PlaceTests
{
    [Fact]
    public void Runs() => Assert.Equal(2, 1 + 1);
}
