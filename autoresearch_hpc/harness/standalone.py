"""A training script run by hand: where its data is, its evaluation at the end, the summary it prints.

AUTORESEARCH_DATA      the data set; default the only one under ./data, else ./data/python-v8192-t2048
AUTORESEARCH_TRAIN_S   seconds of training, default 300
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoresearch_hpc.dataset import MANIFEST
from autoresearch_hpc.errors import AutoresearchError, ConfigError, DataError

DATA_VARIABLE = "AUTORESEARCH_DATA"
TRAIN_VARIABLE = "AUTORESEARCH_TRAIN_S"
DEFAULT_DATA = Path("data") / "python-v8192-t2048"
EVAL_TOKENS = 20_971_520  # as in a search
EVAL_TOKENS_CPU = 262_144  # what a CPU can do in a minute
EVAL_BATCH_ROWS = 64
CPU_NOTE = (
    "train.py: no GPU here; the default sizes are meant for one, and a single step of them takes a CPU half an hour. "
    "The knobs under plan.base in conf/round/quickstart.yaml suit a CPU."
)


def describe() -> dict[str, Any]:
    """The fields of a SessionSpec for this directory and environment."""
    text = os.environ.get(TRAIN_VARIABLE, "300")
    try:
        train_s = float(text)
    except ValueError:
        train_s = 0.0
    if not train_s > 0:
        raise ConfigError(f"{TRAIN_VARIABLE}={text}", "give seconds above 0")
    data_dir = find_data()
    scratch = Path(tempfile.mkdtemp(prefix="autoresearch-"))
    return {
        "data_dir": str(data_dir),
        "seed": 0,
        "train_s": train_s,
        "device": "auto",
        "checkpoint": str(scratch / "checkpoint.pt"),
    }


def find_data() -> Path:
    """The data set to train on. Raises DataError where there is none, or several and no default among them."""
    if named := os.environ.get(DATA_VARIABLE):
        return Path(named).absolute()
    if (DEFAULT_DATA / MANIFEST).is_file():
        return DEFAULT_DATA.absolute()
    found = sorted(path.parent for path in Path("data").glob(f"*/{MANIFEST}"))
    if len(found) == 1:
        return found[0].absolute()
    if found:
        names = ", ".join(str(path) for path in found)
        raise DataError(f"several data sets under ./data: {names}", f"choose one with {DATA_VARIABLE}=DIR")
    raise DataError("no data set under ./data", "prepare it: python -m autoresearch_hpc.prepare")


def evaluate(data_dir: str, checkpoint: str, device: str, seed: int) -> float:
    """bits per byte of the checkpoint, from the trusted evaluator in a process of its own.

    Raises AutoresearchError with the evaluator's reason where it gives no score.
    """
    from autoresearch_hpc.records import Direction, Metric, TrialSpec, to_json  # slow to import, needed only here

    script = Path(sys.argv[0]).absolute()
    trial_dir = Path(checkpoint).parent
    spec = TrialSpec(
        run="standalone", round=0, candidate="r00-c00", trial="r00-c00-t0", commit="", seed=seed, tier="default",
        kind="gpt", src=str(script.parent), script=script.name, trial_dir=str(trial_dir), data_dir=data_dir,
        metric=Metric(name="val_bpb", value=None, direction=Direction.min), device=device,
        train_s=0.0, startup_limit_s=0.0, grace_s=0.0, eval_limit_s=0.0,
        eval_tokens=EVAL_TOKENS if device == "cuda" else EVAL_TOKENS_CPU, eval_batch_rows=EVAL_BATCH_ROWS,
    )  # fmt: skip
    spec_path = trial_dir / "trial.json"
    spec_path.write_text(json.dumps(to_json(spec)), encoding="utf-8")
    read_fd, write_fd = os.pipe()
    command = [sys.executable, "-P", "-m", "autoresearch_hpc.trial.evaluate", str(spec_path)]
    try:
        subprocess.run([*command, "--result-fd", str(write_fd)], input=b"go\n", pass_fds=(write_fd,), check=False)
    finally:
        os.close(write_fd)
    with os.fdopen(read_fd) as pipe:
        text = pipe.read()
    shutil.rmtree(trial_dir, ignore_errors=True)  # made by describe; the score is what stays
    answer = json.loads(text) if text else {"status": "CRASHED", "message": "the evaluator ended without an answer"}
    if answer["status"] != "OK":
        raise AutoresearchError(f"evaluation: {answer['status']}: {answer['message']}")
    return float(answer["value"])


def summary(
    *,
    val_bpb: float | None,
    training_s: float,
    total_s: float,
    saved: Mapping[str, int | float | None],
    figures: Mapping[str, int | float],
) -> str:
    """The block that ends a run's output: `---`, then one `name: value` a line."""
    mfu, tokens, num_params = saved["mfu"], saved["tokens"] or 0, saved["num_params"] or 0
    lines: list[tuple[str, str]] = []
    if val_bpb is not None:
        lines.append(("val_bpb", f"{val_bpb:.6f}"))
    lines += [
        ("training_seconds", f"{training_s:.1f}"),
        ("total_seconds", f"{total_s:.1f}"),
        ("peak_vram_mb", f"{saved['peak_vram_mb'] or 0:.1f}"),
        ("mfu_percent", f"{100 * (mfu or 0):.2f}"),
        ("total_tokens_M", f"{tokens / 1e6:.1f}"),
        ("num_steps", str(saved["steps"])),
        ("num_params_M", f"{num_params / 1e6:.1f}"),
    ]
    lines += [(name, str(value)) for name, value in figures.items()]
    return "\n".join(["---", *(f"{name + ':':<18}{value}" for name, value in lines)])
