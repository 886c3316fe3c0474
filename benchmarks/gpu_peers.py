"""Times PyTorch on the shapes of tests/Kernels.Tests/GpuTimings.cs, and sets our times beside: the other half of gpu.sh.

usage: gpu_peers.py OURS.json RESULTS_FOLDER     writes RESULTS_FOLDER/gpu-DEVICE.json and .md
Without torch or its CUDA device the table has our times only, and says so.
"""

import json
import re
import statistics
import sys
import time
from datetime import date
from pathlib import Path

ROUNDS, CALLS = 15, 5


def time_call(call, wait):
    for _ in range(3):  # compiles
        call()
    wait()
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        wait()
        rounds.append((time.perf_counter() - start) / CALLS * 1000)
    return statistics.median(rounds)


def time_peers(torch, small):
    """{case: {peer: milliseconds}}; a peer that fails is told and left out."""
    import torch.nn.functional as functional
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    device, wait, results = "cuda", torch.cuda.synchronize, {}
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 as ours

    def measure(case, peer, call):
        try:
            results.setdefault(case, {})[peer] = time_call(call, wait)
        except Exception as failure:  # out of memory, or a form that this version of torch lacks
            print(f"{case}, {peer}: {type(failure).__name__}: {str(failure).splitlines()[0]}", file=sys.stderr)

    elements = 1 << (22 if small else 30)
    source, target = torch.zeros(elements, device=device), torch.zeros(elements, device=device)
    measure("copy", "torch copy_", lambda: target.copy_(source))
    del source, target

    batch, heads, length = (1, 2, 128) if small else (4, 16, 2048)
    flex = torch.compile(flex_attention)
    for head_size in (64, 128):
        q, k, v = (torch.randn(batch, heads, length, head_size, device=device, requires_grad=True) for _ in range(3))
        upstream = torch.randn_like(q)
        distances = torch.randn(heads, 2 * length - 1, device=device, requires_grad=True)
        causal = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device=device)

        def with_distance(score, b, h, i, j):
            return score + distances[h, j - i + length - 1]

        forms = {
            "none": {"SDPA": lambda: functional.scaled_dot_product_attention(q, k, v), "FlexAttention": lambda: flex(q, k, v)},
            "causal": {"SDPA": lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=True), "FlexAttention": lambda: flex(q, k, v, block_mask=causal)},
            "distance": {"FlexAttention": lambda: flex(q, k, v, score_mod=with_distance)},
        }
        for bias, peers in forms.items():
            for peer, forward in peers.items():
                def train(forward=forward):
                    torch.autograd.grad(forward(), [q, k, v] + ([distances] if bias == "distance" else []), upstream)

                with torch.no_grad():
                    measure(f"attention/forward-d{head_size}/{bias}", peer, forward)
                measure(f"attention/train-d{head_size}/{bias}", peer, train)

    tokens, vocabulary = (16, 1000) if small else (4096, 32000)
    logits = torch.randn(tokens, vocabulary, device=device)
    targets = (torch.arange(tokens, device=device) % vocabulary)[:, None]

    def log_probs():
        every = torch.log_softmax(logits, -1)
        return every.gather(1, targets), -(every.exp() * every).sum(-1)

    measure(f"logprobs/from-logits/{vocabulary}", "torch", log_probs)
    measure(f"logprobs/from-logits/{vocabulary}", "torch.compile", torch.compile(log_probs))
    return results


def main():
    ours = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[2])
    peers, note = {}, ""
    try:
        import torch
        if torch.cuda.is_available():
            peers = time_peers(torch, ours["small"])
            note = f"PyTorch {torch.__version__} on {torch.cuda.get_device_name()}."
        else:
            note = "PyTorch was NOT timed: it sees no CUDA device."
    except ImportError:
        note = "PyTorch was NOT timed: this python3 has no torch."
    print(note, file=sys.stderr)

    lines = [f"# {ours['device']}", "", f"{date.today().isoformat()}, `benchmarks/gpu.sh`; float32; median of {ROUNDS} rounds of {CALLS} calls. {note}", ""]
    if ours["small"]:
        lines += ["Not a GPU: the shapes are small, and the numbers only show that the program works.", ""]
    lines += ["| case | ours, ms | | PyTorch, ms | fastest of them / ours |", "|---|---|---|---|---|"]
    for timing in ours["timings"]:
        rate = timing["work"] / timing["milliseconds"] / (1e9 if timing["unit"] == "flop" else 1e6)
        theirs = peers.get(timing["case"], {})
        lines.append("| `{}` | {:.3f} | {:.1f} {} | {} | {} |".format(
            timing["case"], timing["milliseconds"], rate, "TFLOP/s" if timing["unit"] == "flop" else "GB/s",
            ", ".join(f"{peer} {time:.3f}" for peer, time in sorted(theirs.items(), key=lambda pair: pair[1])),
            f"{min(theirs.values()) / timing['milliseconds']:.2f}" if theirs else ""))
    folder.mkdir(parents=True, exist_ok=True)
    name = folder / ("gpu-" + re.sub(r"[^A-Za-z0-9]+", "-", ours["device"]).strip("-").lower())
    name.with_suffix(".md").write_text("\n".join(lines) + "\n")
    name.with_suffix(".json").write_text(json.dumps({**ours, "peers": peers, "note": note}, indent=1) + "\n")
    print(f"{name}.md and .json")


main()
