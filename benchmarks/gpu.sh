#!/usr/bin/env bash
# The whole GPU suite on a CUDA device, then timings beside PyTorch's FlexAttention, SDPA and a copy, into benchmarks/results/ under the device's name.
# usage: benchmarks/gpu.sh publish [FOLDER]    on a machine with the .NET SDK: one file that needs nothing but NVIDIA's driver, with this script beside it,
#                                              to be carried to the machine with the GPU; default artifacts/gpu
#        benchmarks/gpu.sh                     on that machine: tests, then timings; python3 with torch for the peers
# Environment: TRANSFORMERKERNELS_TEST_DEVICE   cuda (default) or opencl
#              TRANSFORMERKERNELS_RESULTS       the folder for the results; default: results beside this script
# Exit status: 0 passed, 77 skipped because there is no such device (told loudly), anything else failed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
limit=$((60 * 1000 * 1000)) # bytes: what is carried must stay small

if [ "${1:-}" = publish ]; then
    folder=${2:-$here/../artifacts/gpu}
    dotnet publish "$here/../tests/Kernels.Tests" -c Release -r linux-x64 --self-contained -p:PublishSingleFile=true -p:EnableCompressionInSingleFile=true \
        -p:IncludeAllContentForSelfExtract=true -p:IncludeNativeLibrariesForSelfExtract=true -p:DebugType=none -o "$folder" -v q -nologo
    find "$folder" -mindepth 1 -maxdepth 1 ! -name Kernels.Tests -exec rm -r {} +
    cp "$here/gpu.sh" "$here/gpu_peers.py" "$folder"
    size=$(stat -c %s "$folder/Kernels.Tests")
    echo "$folder/Kernels.Tests: $((size / 1000000)) MB"
    [ "$size" -lt "$limit" ] || { echo "more than $((limit / 1000000)) MB" >&2; exit 1; }
    exit
fi

results=${TRANSFORMERKERNELS_RESULTS:-$here/results}
export TRANSFORMERKERNELS_TEST_DEVICE=${TRANSFORMERKERNELS_TEST_DEVICE:-cuda}

if [ "$TRANSFORMERKERNELS_TEST_DEVICE" = cuda ] && ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
    printf '\n*** SKIPPED: no CUDA device on this machine (nvidia-smi finds none). Nothing was tested and nothing was timed.\n\n' >&2
    exit 77
fi
program=$here/Kernels.Tests
[ -x "$program" ] || program=$here/../artifacts/gpu/Kernels.Tests
[ -x "$program" ] || { echo "No Kernels.Tests beside this script: make it with \"benchmarks/gpu.sh publish\" on a machine with the .NET SDK." >&2; exit 1; }
mkdir -p "$results"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "=== tests on $TRANSFORMERKERNELS_TEST_DEVICE"
failed=0
"$program" -noColor -class- "*GpuTimings" || failed=1
echo "=== timings"
TRANSFORMERKERNELS_TIMINGS=$work/ours.json "$program" -noColor -class "*GpuTimings" -showLiveOutput
if command -v python3 >/dev/null; then
    python3 "$here/gpu_peers.py" "$work/ours.json" "$results"
else
    cp "$work/ours.json" "$results/gpu-$TRANSFORMERKERNELS_TEST_DEVICE.json"
    echo "*** PyTorch was NOT timed: no python3. $results/gpu-$TRANSFORMERKERNELS_TEST_DEVICE.json has our times." >&2
fi
[ "$failed" = 0 ] || echo "*** Tests FAILED on this device, see above: don't trust the times." >&2
exit "$failed"
