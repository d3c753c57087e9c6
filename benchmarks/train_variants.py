"""Steps of train.py and of variants of it, on one GPU, as a table.

    python benchmarks/train_variants.py                       every variant, three rounds
    python benchmarks/train_variants.py "as it is" --profile  where the time of its kernels goes

A variant changes one thing of train.py after it is loaded. Each runs in a process of its own, and the rounds go through
all variants one after another: machines drift. Tokens are random, drawn as rare and frequent as those of text; no data
set is needed. The first round of each variant starts with an empty compile cache of its own, the others find it filled.
"""

import argparse
import importlib.util
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F

from autoresearch_hpc.harness import Meta
from autoresearch_hpc.harness.session import PEAK_FLOPS

SCRIPT = Path(__file__).resolve().parents[1] / "train.py"
META = Meta(vocab_size=8192, seq_len=2048, bos_id=0)
ROUNDS, STEPS, SETTLE = 3, 20, 3

# ----------------------------------------------------------------------------------------------------------------------
# Variants
# ----------------------------------------------------------------------------------------------------------------------


def without_flash(train: ModuleType) -> None:
    """As where flash-attn-4 is not installed."""

    def unavailable(device: torch.device, head_dim: int) -> str:
        train.kernels.hopper(device)
        return "left out"

    train.unavailable = unavailable


def flex_only(train: ModuleType) -> None:
    without_flash(train)
    train.causal_attention = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)


def plain_mlp(train: ModuleType) -> None:
    train.relu_squared_mlp = lambda x, up, down: F.linear(F.relu(F.linear(x, up)).square(), down)


def plain_loss(train: ModuleType) -> None:
    def loss(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, cap: float) -> torch.Tensor:
        return F.cross_entropy(cap * torch.tanh(F.linear(x, weight).float() / cap), targets)

    train.capped_cross_entropy = loss


def concatenated_rotary(train: ModuleType) -> None:
    def forward(self: Any, x: torch.Tensor) -> Any:
        half = x.size(-1) // 2
        cos, sin = self.cos[..., :half].to(x.dtype), self.sin[..., :half].to(x.dtype)
        a, b = x.chunk(2, dim=-1)
        return train.norm(torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1))

    train.Rotary.forward = forward


def all_plain(train: ModuleType) -> None:
    for change in (flex_only, plain_mlp, plain_loss, concatenated_rotary):
        change(train)


def autotuned(train: ModuleType) -> None:
    import torch._inductor.config as config

    config.max_autotune = True


def by_blocks(train: ModuleType) -> None:
    """Layers are compiled each for itself, those of a kind once: less to compile, nothing fused across them."""
    train.GPT.forward = torch._dynamo.disable(train.GPT.forward, recursive=False)


def in_regions(train: ModuleType) -> None:
    """One graph in which layers of a kind are compiled once."""
    train.Block.forward = torch.compiler.nested_compile_region(train.Block.forward)


def small_batches(train: ModuleType) -> None:
    train.DEVICE_BATCH_SIZE = 64


VARIANTS: dict[str, Callable[[ModuleType], None]] = {
    "as it is": lambda train: None,
    "without flash-attn-4": without_flash,
    "plain MLP": plain_mlp,
    "plain loss": plain_loss,
    "rotary by concatenation": concatenated_rotary,
    "all plain": all_plain,
    "compiled by blocks": by_blocks,
    "compiled in regions": in_regions,
    "64 rows at a time": small_batches,
    "autotuned": autotuned,
}

# ----------------------------------------------------------------------------------------------------------------------
# One of them, in a process of its own
# ----------------------------------------------------------------------------------------------------------------------


def load(script: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location("train_variant", script)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["train_variant"] = module
    found.loader.exec_module(module)
    return module


class Tokens:
    """Batches without a data set, on the device; frequencies fall with the rank as in text."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._weights = 1 / (torch.arange(META.vocab_size, dtype=torch.float32, device=device) + 2.7)

    def warmup_batch(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.multinomial(self._weights, rows * (META.seq_len + 1), replacement=True)
        tokens = tokens.view(rows, META.seq_len + 1)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def batches(self, rows: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        ready = [self.warmup_batch(rows) for _ in range(4)]
        return itertools.cycle(ready)


def run(script: Path, variant: str, steps: int, profile: bool) -> dict[str, Any]:
    """Time the steps of one variant as train.py's own loop makes them."""
    train = load(script)
    VARIANTS[variant](train)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    tokens = Tokens(device)
    with torch.device(device):
        model = train.build_model(META)
    started = time.perf_counter()
    train.warm_up(tokens, model)
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    compile_s = time.perf_counter() - started

    optimizers = train.Optimizers(model)
    accumulate = train.num_microbatches(META)
    batches = tokens.batches(train.DEVICE_BATCH_SIZE)
    stamps, losses, reading = [], [], None
    for step in range(steps + SETTLE):
        loss = train.train_step(model, [next(batches) for _ in range(accumulate)])
        optimizers.step(1.0, step / (steps + SETTLE))
        following = train.LossReading(loss, step, 1.0, 0.0)
        if reading is not None:
            losses.append(reading.wait())
            stamps.append(time.perf_counter())
        reading = following
    milliseconds = [1000 * (b - a) for a, b in itertools.pairwise(stamps)][SETTLE - 1 :]
    result: dict[str, Any] = {
        "step_ms": milliseconds,
        "compile_s": compile_s,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if gpu else 0.0,
        "loss": losses[-1],
        "tokens": train.TOTAL_BATCH_SIZE,
        "flops": model.flops_per_token() * train.TOTAL_BATCH_SIZE,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
    }
    if profile:
        result["profile"] = kernels(train, model, optimizers, batches, accumulate)
    return result


# ----------------------------------------------------------------------------------------------------------------------
# Where the time goes
# ----------------------------------------------------------------------------------------------------------------------

GROUPS = {  # the first that a kernel's name matches
    "attention": r"flex_attention|flash|fmha|cudnn_generated|sdpa|FlashAttention",
    "Muon and AdamW": r"muon|adamw|optimizer",
    "loss tail": r"log_softmax|nll_loss|tanh|loss_of|logsumexp|capped",
    "matrix products": r"nvjet|gemm|cutlass|_mm|xmma|wgmma|cublas|splitK",
    "embedding gradients": r"embedding_dense_backward|index_put|embedding_backward|sort|radix",
    "copies and fills": r"memcpy|memset|fill|copy",
}


def kernels(
    train: ModuleType, model: torch.nn.Module, optimizers: Any, batches: Any, accumulate: int
) -> list[tuple[str, str, float, float]]:
    """(group, kernel, milliseconds a step, calls a step) of two steps, the longest first."""
    from torch.autograd import DeviceType

    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    steps = 2
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(steps):
            train.train_step(model, [next(batches) for _ in range(accumulate)])
            with torch.profiler.record_function("optimizer"):
                optimizers.step(1.0, 0.5)
        torch.cuda.synchronize()
    spans = [  # of the optimizer on the device
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.name == "optimizer" and event.device_type == DeviceType.CUDA
    ]
    time_us: dict[tuple[str, str], float] = defaultdict(float)
    calls: dict[tuple[str, str], int] = defaultdict(int)
    for event in profiler.events():
        if event.device_type != DeviceType.CUDA or event.name == "optimizer":
            continue
        in_optimizer = any(start <= event.time_range.start < end for start, end in spans)
        name = f"optimizer: {event.name}" if in_optimizer else event.name
        group = next((group for group, words in GROUPS.items() if re.search(words, name, re.I)), "the rest")
        time_us[group, event.name] += event.time_range.elapsed_us()
        calls[group, event.name] += 1
    table = [(*key, us / 1000 / steps, calls[key] / steps) for key, us in time_us.items()]
    return sorted(table, key=lambda row: -row[2])


def print_profile(rows: list[tuple[str, str, float, float]]) -> None:
    total = sum(row[2] for row in rows)
    groups: dict[str, float] = defaultdict(float)
    for group, _, milliseconds, _ in rows:
        groups[group] += milliseconds
    print("\n| kernels | ms a step | share |\n| --- | --- | --- |")
    for group, milliseconds in sorted(groups.items(), key=lambda item: -item[1]):
        print(f"| {group} | {milliseconds:.1f} | {100 * milliseconds / total:.0f} % |")
    print(f"| all | {total:.1f} | |\n")
    for group, name, milliseconds, calls in rows[:70]:
        print(f"{milliseconds:8.2f} ms {calls:6.0f} x  {group:<20} {name[:150]}")


# ----------------------------------------------------------------------------------------------------------------------
# All of them
# ----------------------------------------------------------------------------------------------------------------------


def in_its_own_process(arguments: list[str], cache: Path) -> dict[str, Any] | str:
    """The result of one variant, or how it failed."""
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"), "TRITON_CACHE_DIR": str(cache / "triton")}
    command = [sys.executable, __file__, "--one", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        if os.environ.get("VERBOSE"):
            print(done.stderr[-3000:])
        return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no output")[:160]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def row_of(name: str, results: list[dict[str, Any]]) -> str:
    steps = [ms for result in results for ms in result["step_ms"]]
    best, median = min(steps), statistics.median(steps)
    first = results[0]
    rate = first["tokens"] / (statistics.fmean(steps) / 1000)
    mfu = first["flops"] / (statistics.fmean(steps) / 1000) / PEAK_FLOPS
    compile_s = f"{first['compile_s']:.0f}, {min(r['compile_s'] for r in results):.0f}"
    rounds = " ".join(f"{statistics.median(result['step_ms']):.1f}" for result in results)
    return (
        f"| {name} | {best:.1f} | {median:.1f} | {rate / 1e6:.3f} | {100 * mfu:.1f} | {first['peak_gib']:.1f} | "
        f"{compile_s} | {first['loss']:.4f} | {rounds} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"of {', '.join(VARIANTS)}; default all")
    parser.add_argument("--script", type=Path, default=SCRIPT)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--profile", action="store_true", help="the kernels of each variant, in its last round")
    parser.add_argument("--one", action="store_true", help="run the one variant here, and print its result as JSON")
    options = parser.parse_args()
    names = options.variants or list(VARIANTS)
    if unknown := [name for name in names if name not in VARIANTS]:
        parser.error(f"no variant {', '.join(unknown)}")
    if options.one:
        print(json.dumps(run(options.script, names[0], options.steps, options.profile)))
        return

    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="variants-") as folder:
        for number in range(options.rounds):
            for i, name in enumerate(names):
                last = number == options.rounds - 1
                arguments = [name, "--script", str(options.script), "--steps", str(options.steps)]
                result = in_its_own_process(
                    [*arguments, *(["--profile"] if options.profile and last else [])], Path(folder, str(i))
                )
                if isinstance(result, str):
                    print(f"{name}: {result}", file=sys.stderr, flush=True)
                else:
                    results[name].append(result)
                    print(row_of(name, [result]), file=sys.stderr, flush=True)
                    if "profile" in result:
                        print_profile(result["profile"])
    devices = {result["device"] for found in results.values() for result in found}
    print(f"{', '.join(devices)}, torch {torch.__version__}, {options.rounds} rounds of {options.steps} steps\n")
    print(
        "| variant | step, best, ms | median | M tokens/s | MFU, % | peak, GiB | compilation, cold and warm, s |",
        end="",
    )
    print(" last loss | median of each round |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, found in results.items():
        print(row_of(name, found) if found else f"| {name} | failed |")


if __name__ == "__main__":
    main()
