using System.CommandLine;
using System.Diagnostics;
using System.Globalization;
using Alignment;
using Spectre.Console;
using TransformerKernels;

var seed = new Option<int>("--seed") { Description = "Where the random numbers begin; the same seed gives the same numbers.", DefaultValueFactory = _ => 1 };
var deviceName = new Option<string>("--device") { Description = "Where to run; a GPU holds weights and activations too.", DefaultValueFactory = _ => Devices.Cpu };
deviceName.AcceptOnlyFromAmong(Devices.Cpu, Devices.OpenCl, Devices.Cuda);
var steps = new Option<int>("--steps") { Description = "How many steps of imitation; of preference optimisation there are a ninth as many.", DefaultValueFactory = _ => new AdditionSettings().SupervisedSteps };
var batch = new Option<int>("--batch") { Description = "Sequences a step.", DefaultValueFactory = _ => new AdditionSettings().BatchSize };
var json = new Option<FileInfo?>("--json") { Description = "A file for the results, as one JSON object." };
var plots = new Option<string>("--plots") { Description = "The folder for the plots.", DefaultValueFactory = _ => Path.Combine("artifacts", "alignment") };
var model = new Option<FileInfo?>("--model") { Description = "Align this Llama checkpoint (GGUF) instead; needs --data." };
var data = new Option<FileInfo?>("--data") { Description = "Preference pairs: one JSON object a line, with prompt, chosen and rejected." };
var root = new RootCommand("Trains a small language model on noisy demonstrations and aligns it with preferences (DPO), on TransformerKernels.") { seed, deviceName, steps, batch, json, plots, model, data };
root.SetAction(Run);
return root.Parse(args).Invoke();

int Run(ParseResult arguments)
{
    long start = Stopwatch.GetTimestamp();
    if (arguments.GetValue(model) is null != arguments.GetValue(data) is null)
        return Refuse("--model and --data go together: a checkpoint, and the pairs to align it with.");

    var screen = new Screen(AnsiConsole.Console);
    try
    {
        using ComputeDevice device = Devices.Open(arguments.GetValue(deviceName)!);
        using ModelMaths maths = Devices.MathsOf(device);
        screen.Line($"Device: {device.Name}. Seed: {arguments.GetValue(seed)}.");
        JobSummary summary = arguments.GetValue(model) is { } checkpoint
            ? Align(maths, screen, checkpoint.FullName, arguments.GetValue(data)!.FullName, arguments.GetValue(seed), start)
            : Add(maths, screen, AdditionSettings.Of(arguments.GetValue(seed), arguments.GetValue(steps), arguments.GetValue(batch)), arguments.GetValue(plots)!, start);
        if (arguments.GetValue(json) is { } file)
            summary.Write(file.FullName);
        return 0;
    }
    catch (Exception exception) when (exception is InvalidDataException or IOException or NotSupportedException or UnauthorizedAccessException)
    {
        return Refuse(exception.Message);
    }
}

JobSummary Add(ModelMaths maths, Screen screen, AdditionSettings settings, string folder, long start)
{
    using var job = new AdditionJob(maths, settings, screen);
    AdditionResult result = job.Run();
    screen.Table($"{settings.TestQuestions} unseen questions, greedy answers judged whole", ["", "exact answers"],
        ["after imitating noisy demonstrations", Percent(result.AccuracyBefore)],
        [$"then {settings.PreferenceSteps} steps on preferences", Percent(result.AccuracyAfter)],
        [$"or {settings.PreferenceSteps} further steps of imitation instead", Percent(result.AccuracyFurther)]);
    Pairs(screen, "Held-out preference pairs", result.PairsBefore, result.PairsAfter);
    screen.Line("Some of the questions answered wrongly before (digits from the ones up):");
    foreach (string sample in result.Samples)
        screen.Line("  " + sample);
    (string png, string svg) = TrainingPlot.Save(result.Curves, folder, "training");
    double seconds = Stopwatch.GetElapsedTime(start).TotalSeconds;
    screen.Line($"Plots: {png} and {svg}");
    Pace(screen, result.Pace, seconds, maths.Device);
    return new(result.AccuracyBefore, result.AccuracyAfter, result.PairsAfter.RewardMargin, result.PairsAfter.RewardAccuracy, result.Pace.TokensPerSecond, maths.Device.Name, settings.Seed, seconds);
}

JobSummary Align(ModelMaths maths, Screen screen, string modelPath, string dataPath, int seed, long start)
{
    CheckpointResult result = CheckpointJob.Run(maths, modelPath, dataPath, new() { Seed = seed }, screen);
    Pairs(screen, $"{result.HeldOutPairs} held-out pairs; aligned on {result.TrainingPairs}", result.Before, result.After);
    double seconds = Stopwatch.GetElapsedTime(start).TotalSeconds;
    Pace(screen, result.Pace, seconds, maths.Device);
    return new(result.Before.ChosenLikelier, result.After.ChosenLikelier, result.After.RewardMargin, result.After.RewardAccuracy, result.Pace.TokensPerSecond, maths.Device.Name, seed, seconds);
}

static void Pairs(Screen screen, string title, PairReport before, PairReport after) => screen.Table(title, ["", "before", "after"],
    ["log p(chosen) > log p(rejected)", Percent(before.ChosenLikelier), Percent(after.ChosenLikelier)],
    ["mean log p(chosen)", Number(before.ChosenLogProb), Number(after.ChosenLogProb)],
    ["mean log p(rejected)", Number(before.RejectedLogProb), Number(after.RejectedLogProb)],
    ["reward margin", Number(before.RewardMargin), Number(after.RewardMargin)],
    // Before alignment the model is its own reference: all rewards are 0, all pairs ties.
    ["reward accuracy", "-", Percent(after.RewardAccuracy)]);

static void Pace(Screen screen, TrainingPace pace, double seconds, ComputeDevice device)
{
    if (device is GpuDevice)
        screen.Line(Invariant($"A step launches {pace.LaunchesPerStep:F0} kernels, copies {pace.BytesToDevicePerStep:N0} bytes to the device and {pace.BytesToHostPerStep:N0} bytes back."));
    screen.Line(Invariant($"{pace.TokensPerSecond:N0} training tokens per second, {seconds:F1} seconds in all, on {device.Name}."));
}

static int Refuse(string message)
{
    Console.Error.WriteLine(message);
    return 1;
}

static string Percent(double share) => Invariant($"{100 * share:F1} %");

static string Number(double value) => Invariant($"{value:F3}");

static string Invariant(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);
