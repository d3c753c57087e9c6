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
import tempfile
import time
from pathlib import Path

import torch

from autoresearch_hpc.dataset import read_manifest
from autoresearch_hpc.harness.events import EVENTS_FD_VARIABLE
from autoresearch_hpc.harness.standalone import DATA_VARIABLE, DEFAULT_DATA, EVAL_TOKENS, TRAIN_VARIABLE

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    data = Path(os.environ.get(DATA_VARIABLE) or DEFAULT_DATA).absolute()
    if not data.exists() and DATA_VARIABLE not in os.environ:
        subprocess.run([sys.executable, "-m", "autoresearch_hpc.prepare", f"corpus.dir={data.parent}"], check=True)
    manifest = read_manifest(data)
    env = {TRAIN_VARIABLE: "60", **os.environ, DATA_VARIABLE: str(data)}

    read_fd, write_fd = os.pipe()
    stamps, saved = {}, {}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:  # a pipe could fill while the events are read
        started = time.monotonic()
        with subprocess.Popen(
            [sys.executable, str(ROOT / "train.py")],
            env={**env, EVENTS_FD_VARIABLE: str(write_fd)},
            pass_fds=(write_fd,),
            stdout=log,
        ) as process:
            os.close(write_fd)
            with os.fdopen(read_fd) as pipe:
                for line in pipe:
                    saved = json.loads(line)
                    stamps[saved["event"]] = time.monotonic() - started
        total_s = time.monotonic() - started
        log.seek(0)
        text = log.read()
    if process.returncode:
        sys.exit(f"train.py failed:\n{text[-2000:]}")

    figures = dict(re.findall(r"^(\w+): +(\S+)$", text, flags=re.MULTILINE))
    step_ms = [float(ms) for ms in re.findall(r" step_ms=([\d.]+)", text)][1:-1]  # the ends are not whole steps
    training_s, tokens = float(figures["training_seconds"]), saved["tokens"]
    median_ms = statistics.median(step_ms)
    eval_tokens = min(EVAL_TOKENS, manifest.rows("val") * manifest.seq_len)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    rows = {
        "device": f"{device}, torch {torch.__version__}",
        "data": f"{data.name}, {manifest.rows('train') * manifest.seq_len / 1e6:.1f} M training tokens",
        "val_bpb": figures["val_bpb"],
        "tokens/s, sustained": f"{tokens / training_s / 1e6:.3f} M",
        "tokens/s, median step": f"{tokens / saved['steps'] / median_ms / 1e3:.3f} M",
        "step, best and median": f"{min(step_ms):.1f} ms, {median_ms:.1f} ms",
        "steps": figures["num_steps"],
        "MFU": f"{figures['mfu_percent']} %",
        "peak memory": f"{float(figures['peak_vram_mb']) / 1024:.1f} GiB",
        "parameters": f"{figures['num_params_M']} M",
        "start-up": f"{stamps['warmup']:.1f} s",
        "compilation, first steps": f"{stamps['clock'] - stamps['warmup']:.1f} s",
        "training": f"{training_s:.1f} s",
        "evaluation": f"{total_s - stamps['saved']:.1f} s for {eval_tokens / 1e6:.1f} M tokens, with its start-up",
        "total": f"{total_s:.1f} s, {100 * training_s / total_s:.0f} % of it training",
    }
    width = max(map(len, rows))
    print("\n".join(f"| {name:<{width}} | {value} |" for name, value in rows.items()))


if __name__ == "__main__":
    main()
