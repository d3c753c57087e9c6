"""What passes before the clock of a training starts, with empty and with full compilers' caches, as a table of seconds.

    python benchmarks/warm_up.py                         train.py: cold, then warm twice
    python benchmarks/warm_up.py train.py other.py       versions beside each other
    python benchmarks/warm_up.py --profile               and where the last forward pass spends it, by function

Each line is a process of its own, as a trial's script is, but neither shut in nor with an evaluator beside it. Those of
a version share their caches; a temporary folder each has for itself. Tokens are random; no data set is needed.
"""

import argparse
import contextlib
import cProfile
import gc
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from train_variants import META, SCRIPT, Tokens, load

from autoresearch_hpc.harness.session import choose_device
from autoresearch_hpc.trial.environment import compiler_caches, shut_in_compilers

PHASES = ("imports", "model", "forward", "backward", "optimizers", "second step")


def measure(script: Path, begun: float, profile: bool) -> dict[str, float]:
    """Warm up as train.py's own function does, phase by phase; `begun` is when the process was started."""
    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(name: str, since: float | None = None) -> Iterator[None]:
        start = time.time() if since is None else since
        yield
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        seconds[name] = time.time() - start

    with phase("imports", begun):
        train = load(script)
    device = choose_device("auto")
    torch.set_float32_matmul_precision("high")
    gc.disable()  # as the session does
    with phase("model"):
        if hasattr(train.kernels, "prepare"):
            train.kernels.prepare(device, train.HEAD_DIM)
        with torch.device(device):
            model = train.build_model(META)
        if train.COMPILE and device.type == "cuda":
            model.compile(dynamic=False)
        optimizers = train.Optimizers(model)
        x, y = Tokens(device).warmup_batch(train.DEVICE_BATCH_SIZE)
    profiler = cProfile.Profile()
    with phase("forward"), profiler if profile else contextlib.nullcontext():
        loss = model(x, y)
    with phase("backward"):
        loss.backward()
    with phase("optimizers"):
        optimizers.step(lr_scale=0.0, progress=0.0)
    with phase("second step"):
        train.train_step(model, [(x, y)])
        optimizers.step(lr_scale=0.0, progress=0.0)
    if profile:
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(60)
    return seconds


def in_a_process(script: Path, caches: Path, profile: bool) -> dict[str, float]:
    """The same in a process of its own, whose caches stay."""
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, __file__, "--one", str(script), "--begun", str(time.time())]
        command += ["--profile"] if profile else []
        environment = {**os.environ, **shut_in_compilers(), **compiler_caches(caches), "TMPDIR": temporary}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", type=Path, default=[SCRIPT])
    parser.add_argument("--turns", type=int, default=3, help="of each, the first with empty caches")
    parser.add_argument("--profile", action="store_true", help="of the last turn's forward pass, on standard error")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.begun, options.profile)), flush=True)
        os._exit(0)  # a pool of compilers takes its time
    print(f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}, torch {torch.__version__}\n")
    print(f"| version | caches | {' | '.join(PHASES)} | all |\n| --- | --- |{' --- |' * (len(PHASES) + 1)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, script in enumerate(options.scripts):
            for turn in range(options.turns):
                profile = options.profile and (script, turn) == (options.scripts[-1], options.turns - 1)
                seconds = in_a_process(script, Path(folder) / str(number), profile)
                cells = [f"{seconds[name]:.2f}" for name in PHASES]
                state = "full" if turn else "empty"
                print(f"| {script} | {state} | {' | '.join(cells)} | {sum(seconds.values()):.2f} |", flush=True)


if __name__ == "__main__":
    main()
