using TransformerKernels;

namespace Alignment;

/// <summary>The model's mathematics on a GPU, by kernels of this sample between the library's, on one stream.</summary>
internal sealed class GpuMaths(GpuDevice device) : ModelMaths
{
    private readonly TensorBuffer norm = device.Allocate(ElementType.Float32, 1);
    private TensorBuffer? partial, draws, chosen;

    public override ComputeDevice Device => device;

    public override DeviceTraffic Traffic => new(device.Counts.Launches, device.Counts.BytesUploaded, device.Counts.BytesDownloaded);

    public override double GradientNorm => norm.ToArray<float>()[0];

    public override void Product(TensorView x, TensorView weight, TensorView y, TensorView addend = default) => Multiply(x, weight, y, addend);

    public override void ProductInputGradient(TensorView dy, TensorView weight, TensorView dx, TensorView addend = default) =>
        Multiply(dy, weight.Permute(1, 0), dx, addend);

    public override void ProductWeightGradient(TensorView dy, TensorView x, TensorView weightGradient) =>
        Multiply(dy.Permute(1, 0), x.Permute(1, 0), weightGradient, weightGradient);

    public override void Norm(TensorView x, TensorView weight, float epsilon, TensorView y, TensorView inverseRms)
    {
        int rows = Length(x, 0);
        device.Launch(NormKernels.Forward, Groups(rows, NormKernels.RowsPerGroup), NormKernels.GroupSize, new NormArguments
        {
            X = device.Tensor<float>(x),
            Weight = device.Tensor<float>(weight),
            Y = device.Tensor<float>(y),
            InverseRms = device.Tensor<float>(inverseRms),
            Upstream = device.Tensor<float>(default),
            InputGradient = device.Tensor<float>(default),
            WeightGradients = device.Tensor<float>(default),
            Rows = rows,
            Width = Length(x, 1),
            Epsilon = epsilon,
        });
    }

    public override void NormBackward(TensorView dy, TensorView x, TensorView weight, TensorView inverseRms, TensorView dx, TensorView weightGradient)
    {
        int rows = Length(x, 0), width = Length(x, 1), pieces = Groups(rows, NormKernels.RowsPerPiece);
        TensorView sums = Partial((long)pieces * width).Reshape(pieces, width);
        NormArguments Arguments(TensorView dy, TensorView x, TensorView weight, TensorView inverseRms, TensorView dx, TensorView sums) => new()
        {
            X = device.Tensor<float>(x),
            Weight = device.Tensor<float>(weight),
            Y = device.Tensor<float>(default),
            InverseRms = device.Tensor<float>(inverseRms),
            Upstream = device.Tensor<float>(dy),
            InputGradient = device.Tensor<float>(dx),
            WeightGradients = device.Tensor<float>(sums),
            Rows = rows,
            Width = width,
        };
        device.Launch(NormKernels.AddInputGradient, Groups(rows, NormKernels.RowsPerGroup), NormKernels.GroupSize, Arguments(dy, x, weight, inverseRms, dx, sums));
        device.Launch(NormKernels.SumWeightGradient, checked(pieces * Groups(width, NormKernels.GroupSize)), NormKernels.GroupSize, Arguments(dy, x, weight, inverseRms, dx, sums));
        AddPieces(sums, weightGradient, weightGradient);
    }

    public override void Gate(TensorView gate, TensorView up, TensorView sigmoid, TensorView y) => Launch(GateKernels.Forward, gate, up, sigmoid, y, default);

    public override void GateBackward(TensorView dy, TensorView gate, TensorView up, TensorView sigmoid) => Launch(GateKernels.Backward, gate, up, sigmoid, default, dy);

    public override void Gather(TensorView table, TensorView rows, TensorView result) => Move(RowKernels.Gather, table, rows, result);

    public override void Scatter(TensorView values, TensorView rows, TensorView result) => Move(RowKernels.Scatter, values, rows, result);

    public override void AddByToken(TensorView values, TokenBatch batch, TensorView table)
    {
        int width = Length(table, 1);
        device.Launch(RowKernels.AddByToken, checked(Length(batch.DistinctView, 0) * Groups(width, RowKernels.GroupSize)), RowKernels.GroupSize, new TokenSumArguments
        {
            Values = device.Tensor<float>(values),
            Table = device.Tensor<float>(table),
            Order = device.Tensor<int>(batch.OrderView),
            Distinct = device.Tensor<int>(batch.DistinctView),
            Groups = device.Tensor<int>(batch.GroupView),
            Width = width,
        });
    }

    public override void Copy(TensorView from, TensorView to)
    {
        if (from.ElementCount == 0)
            return;
        while (from.Rank < 3)
        {
            from = Lengthen(from);
            to = Lengthen(to);
        }
        device.Launch(RowKernels.Copy, checked((int)((from.ElementCount + RowKernels.GroupSize - 1) / RowKernels.GroupSize)), RowKernels.GroupSize, new CopyArguments
        {
            From = device.Tensor<float>(from),
            To = device.Tensor<float>(to),
            Count = from.ElementCount,
            Rows = from.Length(1),
            Width = from.Length(2),
        });
    }

    public override void Fill(TensorView vector, float value) => device.Launch(RowKernels.Fill, Groups(Length(vector, 0), RowKernels.GroupSize), RowKernels.GroupSize,
        new FillArguments { Vector = device.Tensor<float>(vector), Value = value, Count = Length(vector, 0) });

    public override void Mean(TensorView vector, TensorView mean) => Launch(SumKernels.Mean, 1, vector, default, mean);

    public override void SumSegments(TensorView values, TensorView starts, TensorView sums) =>
        Launch(SumKernels.Segments, Groups(Length(sums, 0), SumKernels.GroupSize), values, starts, sums);

    public override void Update(TensorView values, TensorView gradients, TensorView first, TensorView second, in AdamWStep step)
    {
        int count = Length(values, 0), groups = SumKernels.SquareGroups(count);
        TensorView squares = Partial(groups);
        Launch(SumKernels.Squares, groups, gradients, default, squares);
        Launch(SumKernels.Norm, 1, squares, default, norm);
        device.Launch(UpdateKernels.Update, Groups(count, UpdateKernels.GroupSize), UpdateKernels.GroupSize, new UpdateArguments
        {
            Values = device.Tensor<float>(values),
            Gradients = device.Tensor<float>(gradients),
            First = device.Tensor<float>(first),
            Second = device.Tensor<float>(second),
            Norm = device.Tensor<float>(norm),
            Count = count,
            LargestNorm = (float)step.LargestNorm,
            Beta1 = step.Beta1,
            OneMinusBeta1 = step.OneMinusBeta1,
            Beta2 = step.Beta2,
            OneMinusBeta2 = step.OneMinusBeta2,
            Epsilon = step.Epsilon,
            Keep = step.Keep,
            StepSize = step.StepSize,
            RootCorrection2 = step.RootCorrection2,
        });
    }

    public override void Choose(TensorView logits, ReadOnlySpan<double> draws, Span<int> tokens)
    {
        Resize(ref chosen, ElementType.Int32, tokens.Length);
        if (!draws.IsEmpty)
        {
            Resize(ref this.draws, ElementType.Float32, draws.Length);
            var narrow = new float[draws.Length];
            for (int i = 0; i < narrow.Length; i++)
                narrow[i] = (float)draws[i];
            this.draws!.CopyFrom<float>(narrow);
        }
        device.Launch(draws.IsEmpty ? ChoiceKernels.Likeliest : ChoiceKernels.Drawn, tokens.Length, ChoiceKernels.GroupSize, new ChoiceArguments
        {
            Logits = device.Tensor<float>(logits),
            Draws = device.Tensor<float>(draws.IsEmpty ? default : this.draws!.View),
            Tokens = device.Tensor<int>(chosen!),
            Vocabulary = Length(logits, 1),
        });
        chosen!.CopyTo(tokens);
    }

    public override void Dispose()
    {
        device.Synchronize();
        norm.Dispose();
        partial?.Dispose();
        draws?.Dispose();
        chosen?.Dispose();
    }

    private void Multiply(TensorView left, TensorView right, TensorView result, TensorView addend)
    {
        int rows = Length(result, 0), columns = Length(result, 1), terms = Length(left, 1);
        int termsPerPiece = ProductKernels.TermsPerPiece(rows, columns, terms), pieces = Math.Max(1, Groups(terms, termsPerPiece));
        TensorView sums = pieces == 1 ? result.Reshape(1, rows, columns) : Partial((long)pieces * rows * columns).Reshape(pieces, rows, columns);
        int rowTiles = Groups(rows, ProductKernels.TileRows), columnTiles = Groups(columns, ProductKernels.TileColumns);
        device.Launch(ProductKernels.Multiply, checked(rowTiles * columnTiles * pieces), ProductKernels.GroupSize, new ProductArguments
        {
            Left = device.Tensor<float>(left),
            Right = device.Tensor<float>(right),
            Addend = device.Tensor<float>(pieces == 1 ? addend : default),
            Result = device.Tensor<float>(sums),
            Rows = rows,
            Columns = columns,
            Terms = terms,
            TermsPerPiece = termsPerPiece,
            RowTiles = rowTiles,
            ColumnTiles = columnTiles,
            LeftByTerm = left.Stride(1) == 1 ? 1 : 0,
            RightByTerm = right.Stride(1) == 1 ? 1 : 0,
        });
        if (pieces > 1)
            AddPieces(sums.Reshape(pieces, (long)rows * columns), Flat(addend), Flat(result));
    }

    private void AddPieces(TensorView sums, TensorView addend, TensorView result)
    {
        int count = Length(sums, 1);
        device.Launch(SumKernels.AddPieces, Groups(count, SumKernels.GroupSize), SumKernels.GroupSize, new PieceArguments
        {
            Sums = device.Tensor<float>(sums),
            Addend = device.Tensor<float>(addend),
            Result = device.Tensor<float>(result),
            Pieces = Length(sums, 0),
            Count = count,
        });
    }

    private void Launch(Action<SumArguments> kernel, int groups, TensorView values, TensorView starts, TensorView result) =>
        device.Launch(kernel, groups, SumKernels.GroupSize, new SumArguments
        {
            Values = device.Tensor<float>(values),
            Starts = device.Tensor<int>(starts),
            Result = device.Tensor<float>(result),
            Count = Length(values, 0),
            Sums = Length(result, 0),
        });

    private void Launch(Action<GateArguments> kernel, TensorView gate, TensorView up, TensorView sigmoid, TensorView y, TensorView upstream)
    {
        int count = checked((int)gate.ElementCount);
        device.Launch(kernel, Groups(count, GateKernels.GroupSize), GateKernels.GroupSize, new GateArguments
        {
            Gate = device.Tensor<float>(Flat(gate)),
            Up = device.Tensor<float>(Flat(up)),
            Sigmoid = device.Tensor<float>(Flat(sigmoid)),
            Y = device.Tensor<float>(Flat(y)),
            Upstream = device.Tensor<float>(Flat(upstream)),
            Count = count,
        });
    }

    private void Move(Action<RowArguments> kernel, TensorView from, TensorView places, TensorView to)
    {
        int count = Length(places, 0), width = Length(from, 1);
        device.Launch(kernel, Groups(checked(count * width), RowKernels.GroupSize), RowKernels.GroupSize, new RowArguments
        {
            From = device.Tensor<float>(from),
            To = device.Tensor<float>(to),
            Places = device.Tensor<int>(places),
            Count = count,
            Width = width,
        });
    }

    // Scratch memory of at least so many floats, for the launches of one call.
    private TensorView Partial(long count)
    {
        if (partial is null || partial.ElementCount < count)
            Resize(ref partial, ElementType.Float32, count);
        return partial!.View.Slice(0, 0, count);
    }

    private void Resize(ref TensorBuffer? buffer, ElementType type, long count)
    {
        if (buffer?.ElementCount == count)
            return;
        if (buffer is not null)
        {
            device.Synchronize();
            buffer.Dispose();
        }
        buffer = device.Allocate(type, count);
    }

    // With an axis of length 1 before the others.
    private static TensorView Lengthen(TensorView view) => view.Rank == 1 ? view.Reshape(1, view.Length(0)) : view.Reshape(1, view.Length(0), view.Length(1));

    private static TensorView Flat(TensorView view) => view.IsPresent ? view.Reshape(view.ElementCount) : default;

    private static int Groups(int count, int size) => ProductKernels.Tiles(count, size);

    private static int Length(TensorView view, int axis) => checked((int)view.Length(axis));
}
