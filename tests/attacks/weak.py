"""A deliberately weak way to run a trial, with every weakness that the attacks live by.

    python weak.py SRC DATA TRIAL_DIR

It believes a result.json that is there, and a printed score. It trains and evaluates with its own environment, in the
script's directory. It tells the script where all data is. It unpickles the checkpoint, builds the candidate's model in
its own process, shows it the targets if it wants them, and takes what comes out for a distribution. It stops nothing
for a minute and a half.
"""

import importlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

LIMIT_S = 90.0


def main() -> None:
    src, data, trial = (Path(word) for word in sys.argv[1:4])
    train(src, data, trial)
    print(json.dumps({"value": believed(trial) or evaluated(src, data, trial)}))


def train(src: Path, data: Path, trial: Path) -> None:
    session = {
        "schema": 1, "data_dir": str(data), "seed": 1, "train_s": 0.8, "device": "cpu",
        "checkpoint": str(trial / "checkpoint.pt"), "num_threads": 1,
    }  # fmt: skip
    (trial / "session.json").write_text(json.dumps(session))
    env = {**os.environ, "AUTORESEARCH_SESSION": str(trial / "session.json")}
    with (trial / "train.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "train.py"], cwd=src, env=env, stdout=log, stderr=log)
        try:
            process.wait(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()


def believed(trial: Path) -> float | None:
    if (trial / "result.json").exists():
        return float(json.loads((trial / "result.json").read_text())["metric"]["value"])
    found = re.findall(r"^val_bpb: +(\S+)$", (trial / "train.log").read_text(errors="replace"), re.MULTILINE)
    return float(found[-1]) if found else None


def evaluated(src: Path, data: Path, trial: Path) -> float:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import weak; "
        f"weak.evaluate({str(data)!r}, {str(trial / 'checkpoint.pt')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=src, capture_output=True, text=True, timeout=60)
    lines = done.stdout.strip().splitlines()
    if not lines:
        sys.exit(f"weak: no answer\n{done.stderr}")
    return float(json.loads(lines[-1])["value"])


def evaluate(data: str, checkpoint: str) -> None:
    import torch

    from autoresearch_hpc.dataset import Dataset
    from autoresearch_hpc.harness import Meta

    candidate = importlib.import_module("train")
    dataset = Dataset(Path(data))
    manifest = dataset.manifest
    model = candidate.build_model(Meta(vocab_size=manifest.vocab_size, seq_len=manifest.seq_len, bos_id=0))
    model.load_state_dict(torch.load(checkpoint, weights_only=False), strict=False)
    rows = torch.from_numpy(dataset.rows("val")[0].astype("int64"))
    token_bytes = torch.from_numpy(dataset.token_bytes())
    nats = num_bytes = 0.0
    for first in range(0, len(rows), 32):
        inputs, targets = rows[first : first + 32, :-1], rows[first : first + 32, 1:]
        with torch.no_grad():
            answer = model(inputs, targets)
        if answer.dim() == 0:  # the candidate's own mean loss
            nats += float(answer) * targets.numel()
        else:
            loss = torch.nn.functional.cross_entropy(answer.flatten(0, 1), targets.flatten(), reduction="sum")
            nats += float(loss)
        num_bytes += float(token_bytes[targets].sum())
    print(json.dumps({"value": nats / math.log(2) / num_bytes}))


if __name__ == "__main__":
    main()
