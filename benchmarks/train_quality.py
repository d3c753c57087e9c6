"""Two versions of train.py after the same training seconds, over some seeds: val_bpb and speed, as a table.

    python benchmarks/train_quality.py train.py other/train.py --seeds 3 --train-s 60

Each version runs in a process of its own, which compiles once and trains anew for every seed, on the data set that
train.py itself would take. The validation rows are scored here, by the evaluator's arithmetic.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_variants import load

from autoresearch_hpc.dataset import Dataset
from autoresearch_hpc.harness import Session, standalone
from autoresearch_hpc.harness.events import Events
from autoresearch_hpc.harness.session import SessionSpec
from autoresearch_hpc.trial.scoring import bits_per_byte, nats_of, val_rows

EVAL_ROWS = 64


def session_of(data: Path, seed: int, train_s: float) -> Session:
    fields = {"data_dir": str(data), "seed": seed, "train_s": train_s, "device": "auto", "checkpoint": ""}
    return Session(SessionSpec(**fields), Events(None))


@torch.no_grad()
def score(model: torch.nn.Module, data: Path, device: torch.device) -> float:
    dataset = Dataset(data)
    rows = val_rows(dataset.rows("val"), standalone.EVAL_TOKENS)
    rows = rows[: len(rows) // EVAL_ROWS * EVAL_ROWS or None]
    nats = []
    for first in range(0, len(rows), EVAL_ROWS):
        part = torch.from_numpy(rows[first : first + EVAL_ROWS].astype(np.int64)).to(device)
        nats.append(nats_of(model(part[:, :-1]), part[:, 1:].contiguous()).cpu().numpy())
    return float(str(bits_per_byte(np.concatenate(nats), dataset.token_bytes()[rows[:, 1:]])["value"]))


def train_all(script: Path, data: Path, seeds: int, train_s: float) -> dict[str, Any]:
    """Train as the script's own main does, once a seed."""
    train = load(script)
    session = session_of(data, 0, train_s)
    accumulate = train.num_microbatches(session.meta)
    with torch.device(session.device):
        model = train.build_model(session.meta)
    gpu = session.device.type == "cuda"
    started = time.perf_counter()
    train.warm_up(session, model)
    compile_s = time.perf_counter() - started
    results = []
    for seed in range(seeds):
        session = session_of(data, seed, train_s)
        model.initialize()
        with torch.no_grad():
            model.residual_scale.fill_(1.0)
            model.input_scale.fill_(0.1)
        optimizers = train.Optimizers(model)
        session.start()
        batches = session.batches(train.DEVICE_BATCH_SIZE)
        readings: deque[Any] = deque()
        stamps, steps = [], 0
        while not session.expired:
            progress = session.progress
            lr_scale = train.lr_scale_at(progress)
            loss = train.train_step(model, [next(batches) for _ in range(accumulate)])
            optimizers.step(lr_scale, progress)
            steps += 1
            readings.append(train.LossReading(loss, steps, lr_scale, progress))
            if len(readings) > 1:
                readings.popleft().wait()
                stamps.append(time.perf_counter())
        last = readings.popleft().wait()
        trained_s = session.elapsed_s
        session._close_feeds()
        step_ms = 1000 * np.diff(stamps)
        results.append(
            {
                "val_bpb": score(model, data, session.device),
                "steps": steps,
                "tokens_per_s": steps * train.TOTAL_BATCH_SIZE / trained_s,
                "best_ms": float(step_ms.min()),
                "median_ms": float(np.median(step_ms)),
                "loss": last,
                "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if gpu else 0.0,
            }
        )
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    device = torch.cuda.get_device_name() if gpu else "cpu"
    return {"compile_s": compile_s, "device": device, "seeds": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train-s", type=float, default=60.0)
    parser.add_argument("--one", action="store_true", help="train the one script here, and print its result as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(train_all(options.scripts[0], standalone.find_data(), options.seeds, options.train_s)))
        return
    print(
        "| version | val_bpb of each seed | mean | M tokens/s, sustained | step, best and median, ms | steps |", end=""
    )
    print(" peak, GiB | compilation, s |\n| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for script in options.scripts:
        command = [sys.executable, __file__, "--one", str(script), "--seeds", str(options.seeds)]
        command += ["--train-s", str(options.train_s)]
        result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        seeds = result["seeds"]
        scores = [seed["val_bpb"] for seed in seeds]
        best, median = min(s["best_ms"] for s in seeds), statistics.median(s["median_ms"] for s in seeds)
        cells = [
            str(script),
            " ".join(f"{value:.6f}" for value in scores),
            f"{statistics.fmean(scores):.6f}",
            f"{statistics.fmean(seed['tokens_per_s'] for seed in seeds) / 1e6:.3f}",
            f"{best:.1f}, {median:.1f}",
            " ".join(str(seed["steps"]) for seed in seeds),
            f"{max(seed['peak_gib'] for seed in seeds):.1f}",
            f"{result['compile_s']:.0f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\n{result['device']}, torch {torch.__version__}, {options.train_s:g} s of training")


if __name__ == "__main__":
    main()
