"""One training of train.py on this machine's GPU, as a table.

    python benchmarks/train_gpu.py            60 s; AUTORESEARCH_TRAIN_S=300 for another time

Trains on ./data/python-v8192-t2048, or on AUTORESEARCH_DATA, and prepares the former where it is missing. The step
times are those of train.py's log, each up to the moment when the step's loss arrived.
"""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from autoresearch_hpc.dataset import read_manifest
from autoresearch_hpc.harness.standalone import DATA_VARIABLE, DEFAULT_DATA, EVAL_TOKENS, TRAIN_VARIABLE

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    data = Path(os.environ.get(DATA_VARIABLE) or DEFAULT_DATA).absolute()
    if not data.exists():
        subprocess.run([sys.executable, "-m", "autoresearch_hpc.prepare", f"corpus.dir={data.parent}"], check=True)
    manifest = read_manifest(data)
    env = {**os.environ, DATA_VARIABLE: str(data), TRAIN_VARIABLE: os.environ.get(TRAIN_VARIABLE, "60")}

    read_fd, write_fd = os.pipe()
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, str(ROOT / "train.py")],
        env={**env, "AUTORESEARCH_EVENTS_FD": str(write_fd)},
        pass_fds=(write_fd,),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(write_fd)
        assert process.stdout is not None
        output = process.stdout.read  # small: a line a step
        stamps = {}
        with os.fdopen(read_fd) as pipe:
            for line in pipe:
                stamps[json.loads(line)["event"]] = time.monotonic() - started
        text = output()
    total_s = time.monotonic() - started
    if process.returncode:
        sys.exit(f"train.py failed:\n{text[-2000:]}")

    steps = [float(ms) for ms in re.findall(r" step_ms=([\d.]+)", text)]
    figures = dict(re.findall(r"^(\w+): +(\S+)$", text, flags=re.MULTILINE))
    tokens_per_step = float(figures["total_tokens_M"]) * 1e6 / len(steps)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    rows = {
        "device": f"{device}, torch {torch.__version__}",
        "data": f"{data.name}, {manifest.rows('train') * manifest.seq_len / 1e6:.1f} M training tokens",
        "val_bpb": figures["val_bpb"],
        "tokens/s, sustained": f"{float(figures['total_tokens_M']) / float(figures['training_seconds']):.3f} M",
        "tokens/s, median step": f"{tokens_per_step / statistics.median(steps) / 1e3:.3f} M",
        "step, best / median": f"{min(steps[1:-1] or steps):.1f} / {statistics.median(steps):.1f} ms",
        "steps": figures["num_steps"],
        "MFU": f"{figures['mfu_percent']} %",
        "peak memory": f"{float(figures['peak_vram_mb']) / 1024:.1f} GiB",
        "parameters": f"{figures['num_params_M']} M",
        "start-up": f"{stamps['warmup']:.1f} s",
        "first steps, compilation": f"{stamps['clock'] - stamps['warmup']:.1f} s",
        "training": f"{figures['training_seconds']} s",
        "evaluation": f"{total_s - stamps['saved']:.1f} s for "
        f"{min(EVAL_TOKENS, manifest.rows('val') * manifest.seq_len) / 1e6:.1f} M tokens, its own start-up included",
        "total": f"{total_s:.1f} s, {100 * float(figures['training_seconds']) / total_s:.0f} % of it training",
    }
    width = max(map(len, rows))
    print("\n".join(f"| {name:<{width}} | {value} |" for name, value in rows.items()))


if __name__ == "__main__":
    main()
