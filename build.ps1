# usage: build.ps1 [build | test | bench | pack | sample] [ARGUMENT ...]     default: test
# Arguments go to the command behind the verb, for instance: build.ps1 test --project tests/Managed.Tests
# Language and native commands only, no cmdlets, so that any host runs it; without pwsh: dotnet run build/pwsh.cs build.ps1 test

$ErrorActionPreference = 'Stop'
$verb = 'test'
$rest = @()
if ($args.Count -gt 0) { $verb = $args[0] }
if ($args.Count -gt 1) { $rest = $args[1..($args.Count - 1)] }

# global.json, which chooses the test runner, is looked up from the current folder.
$location = $ExecutionContext.SessionState.Path
$location.PushCurrentLocation('build')
[void] $location.SetLocation($PSScriptRoot)
try {
    switch ($verb) {
        'build'  { dotnet build Kernels.sln -c Release @rest }
        'test'   { dotnet test @rest }
        'bench'  { dotnet run -c Release --project benchmarks -- @rest }
        'pack'   { dotnet pack Kernels.sln -c Release -o artifacts/packages @rest }
        'sample' { dotnet run -c Release --project samples/Alignment -- @rest }
        default  { throw "Unknown verb '$verb': build, test, bench, pack or sample." }
    }
}
finally {
    [void] $location.PopLocation('build')
}
exit $LASTEXITCODE
