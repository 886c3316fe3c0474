#:package System.Management.Automation
#:property PublishAot=false

// Runs a PowerShell script where pwsh isn't installed: dotnet run build/pwsh.cs build.ps1 test
// It hosts PowerShell's engine alone: the language and native commands, none of the Utility and Management cmdlets.

using System.Management.Automation;
using System.Management.Automation.Runspaces;

if (args.Length == 0)
{
    Console.Error.WriteLine("usage: dotnet run build/pwsh.cs SCRIPT [ARGUMENT ...]");
    return 2;
}

using Runspace runspace = RunspaceFactory.CreateRunspace(InitialSessionState.CreateDefault2());
runspace.Open();
using PowerShell shell = PowerShell.Create(runspace);
shell.AddCommand(Path.GetFullPath(args[0]));
foreach (string argument in args[1..])
    shell.AddArgument(argument);

var output = new PSDataCollection<PSObject>();
output.DataAdded += (_, at) => Console.Out.WriteLine(output[at.Index]);
shell.Streams.Error.DataAdded += (_, at) => Console.Error.WriteLine(shell.Streams.Error[at.Index]);
Console.CancelKeyPress += (_, _) => shell.Stop();
try
{
    shell.Invoke(null, output);
}
catch (RuntimeException error)
{
    Console.Error.WriteLine(error.ErrorRecord);
    return 1;
}
return runspace.SessionStateProxy.GetVariable("LASTEXITCODE") is int code ? code : shell.HadErrors ? 1 : 0;
