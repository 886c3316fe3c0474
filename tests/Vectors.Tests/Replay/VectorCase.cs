using System.Text.Json;

namespace TransformerKernels.Tests;

/// <summary>All files of numbers that other projects computed.</summary>
public sealed class VectorSet
{
    private readonly Dictionary<string, VectorCase> cases = [];

    /// <summary>Reads every JSON file of a folder and of its folders.</summary>
    public VectorSet(string root)
    {
        if (!Directory.Exists(root))
            throw new DirectoryNotFoundException($"There is no folder {root} with vectors.");
        foreach (string path in Directory.EnumerateFiles(root, "*.json", SearchOption.AllDirectories))
            Read(path, Path.GetRelativePath(root, path).Replace('\\', '/'));
    }

    /// <summary>Every case, by folder and file, in the file's order.</summary>
    public IEnumerable<VectorCase> Cases => cases.Values.OrderBy(vector => vector.Folder, StringComparer.Ordinal).ThenBy(vector => vector.File, StringComparer.Ordinal);

    /// <summary>A case that another one refers to.</summary>
    public VectorCase Find(string folder, string file, string name) => cases[$"{folder}/{file}#{name}"];

    private void Read(string path, string relative)
    {
        using JsonDocument document = JsonDocument.Parse(File.ReadAllBytes(path));
        int slash = relative.LastIndexOf('/');
        string folder = slash < 0 ? "." : relative[..slash], file = relative[(slash + 1)..];
        JsonElement root = document.RootElement.Clone();
        // Computed sets have a list of cases; in literal collections every member is one.
        if (root.TryGetProperty("cases", out JsonElement list))
        {
            foreach (JsonElement item in list.EnumerateArray())
                Add(new(this, folder, file, item.GetProperty("name").GetString()!, item));
            return;
        }
        foreach (JsonProperty member in root.EnumerateObject())
        {
            if (member.Value.ValueKind == JsonValueKind.Object)
                Add(new(this, folder, file, member.Name, member.Value));
        }
    }

    private void Add(VectorCase vector)
    {
        if (!cases.TryAdd(vector.Id, vector))
            throw new InvalidDataException($"There are two cases {vector.Id}.");
    }
}

/// <summary>One case: inputs, parameters, and what the reference computed of them.</summary>
public sealed class VectorCase
{
    private readonly JsonElement parameters, inputs;

    public VectorCase(VectorSet set, string folder, string file, string name, JsonElement json)
    {
        Set = set;
        Folder = folder;
        File = file;
        Name = name;
        Json = json;
        parameters = Member(json, "parameters") ?? Member(json, "attrs") ?? default;
        inputs = Member(json, "inputs") ?? default;
        // A literal collection of another form has its outputs right there.
        Outputs = Tensors(Member(json, "outputs") ?? (inputs.ValueKind == JsonValueKind.Undefined ? json : null));
        Gradients = Tensors(Member(json, "gradients"));
        ComputedInFloat32 = Member(json, "computedIn") is { } type && type.GetString() == "float32";
    }

    /// <summary>Where the case comes from, and with it those that it refers to.</summary>
    public VectorSet Set { get; }

    public string Folder { get; }

    public string File { get; }

    public string Name { get; }

    /// <summary>folder/file#name; the lists name cases so.</summary>
    public string Id => $"{Folder}/{File}#{Name}";

    /// <summary>The case as it stands in the file.</summary>
    public JsonElement Json { get; }

    public IReadOnlyDictionary<string, VectorTensor> Outputs { get; }

    public IReadOnlyDictionary<string, VectorTensor> Gradients { get; }

    /// <summary>Whether the reference itself rounded to float32.</summary>
    public bool ComputedInFloat32 { get; }

    /// <summary>Throws <see cref="NotReplayedException"/> if the case has parameters or inputs beyond these: what nobody reads must not be passed over.</summary>
    public void KnowsOnly(ReadOnlySpan<string> parameterNames, ReadOnlySpan<string> inputNames)
    {
        if (parameters.ValueKind == JsonValueKind.Object)
        {
            foreach (JsonProperty parameter in parameters.EnumerateObject())
            {
                if (parameter.Value.ValueKind != JsonValueKind.Null && !parameterNames.Contains(parameter.Name))
                    throw new NotReplayedException(parameter.Name);
            }
        }
        if (inputs.ValueKind == JsonValueKind.Object)
        {
            foreach (JsonProperty input in inputs.EnumerateObject())
            {
                if (!inputNames.Contains(input.Name))
                    throw new NotReplayedException(input.Name);
            }
        }
    }

    /// <summary>Throws <see cref="NotReplayedException"/> unless the parameter is absent or has this value.</summary>
    public void Requires<T>(string parameter, T value)
    {
        if (Parameter(parameter) is not { } found)
            return;
        bool same = value switch
        {
            bool flag => found.ValueKind is JsonValueKind.True or JsonValueKind.False && found.GetBoolean() == flag,
            double number => found.ValueKind == JsonValueKind.Number && found.GetDouble() == number,
            _ => found.ValueKind == JsonValueKind.String && found.GetString() == value!.ToString(),
        };
        if (!same)
            throw new NotReplayedException($"{parameter} {found}");
    }

    /// <summary>The parameter, null where it is absent or null.</summary>
    public JsonElement? Parameter(string name)
    {
        JsonElement? found = parameters.ValueKind == JsonValueKind.Object ? Member(parameters, name) : null;
        return found is { ValueKind: JsonValueKind.Null } ? null : found;
    }

    public double? Number(string name) => Parameter(name) is not { } value ? null
        : value.ValueKind == JsonValueKind.Number ? value.GetDouble() : throw new NotReplayedException($"{name} {value.ValueKind}");

    public string? Text(string name) => Parameter(name)?.GetString();

    public bool Flag(string name) => Parameter(name) is { } value && (value.ValueKind == JsonValueKind.Number ? value.GetInt32() != 0 : value.GetBoolean());

    public VectorTensor? Input(string name) => inputs.ValueKind == JsonValueKind.Object && Member(inputs, name) is { } json ? new VectorTensor(json) : null;

    public VectorTensor Need(string name) => Input(name) ?? throw new NotReplayedException($"no {name}");

    private static JsonElement? Member(JsonElement json, string name) => json.TryGetProperty(name, out JsonElement value) ? value : null;

    private static Dictionary<string, VectorTensor> Tensors(JsonElement? group)
    {
        var tensors = new Dictionary<string, VectorTensor>();
        if (group is { ValueKind: JsonValueKind.Object } json)
            Collect(json, "", tensors);
        return tensors;
    }

    // Groups of tensors are flattened to "group/name"; what isn't a tensor of numbers stays there as one without data.
    private static void Collect(JsonElement group, string prefix, Dictionary<string, VectorTensor> tensors)
    {
        foreach (JsonProperty member in group.EnumerateObject())
        {
            JsonElement value = member.Value;
            if (value.ValueKind == JsonValueKind.Object && !value.TryGetProperty("shape", out _))
                Collect(value, prefix + member.Name + "/", tensors);
            else
                tensors.Add(prefix + member.Name, new VectorTensor(value));
        }
    }
}
