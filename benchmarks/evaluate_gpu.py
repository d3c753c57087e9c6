"""What the evaluation of one trial takes on this machine's GPU, with and without its checks, as a table.

    python benchmarks/evaluate_gpu.py

The data is made up (20.97 M validation tokens), the model is train.py's with random weights. `plain` is one process
that computes logits and scores them, with nothing kept apart and nothing checked. `trusted` is the evaluator as a trial
runs it: two servers, logits through shared GPU memory, twins. Times are from `go` to the answer, imports excluded.
A `warm` one has compiled the same model before. BATCH are the rows of a batch, ROWS those of the validation data.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from autoresearch_hpc import sandbox
from autoresearch_hpc.dataset import MANIFEST, TOKEN_BYTES, TOKENIZER, DataFile, Manifest
from autoresearch_hpc.files import sha256_file, write_json_atomic
from autoresearch_hpc.records import Direction, Metric, TrialSpec, to_json
from autoresearch_hpc.trial import compiled
from autoresearch_hpc.trial.scratch import Scratch

ROOT = Path(__file__).resolve().parents[1]
VOCAB, SEQ_LEN, ROWS, BATCH = 8192, 2048, int(os.environ.get("ROWS", "10240")), int(os.environ.get("BATCH", "64"))
TRIAL_S = 300.0

PLAIN = """
import sys, time, torch
from pathlib import Path
from autoresearch_hpc.dataset import Dataset
from autoresearch_hpc.harness import Meta
from autoresearch_hpc.trial.scoring import nats_of
from autoresearch_hpc.trial.server import Model
torch.set_float32_matmul_precision("high")
begun, batch = time.monotonic(), int(sys.argv[4])
data = Dataset(Path(sys.argv[1]))
meta = Meta(vocab_size=data.manifest.vocab_size, seq_len=data.manifest.seq_len, bos_id=0)
fd = open(sys.argv[2], "rb")
import os
model = Model(Path(sys.argv[3]), os.dup(fd.fileno()), meta, torch.device("cuda"))
rows, total = data.rows("val")[0], torch.zeros((), dtype=torch.float64, device="cuda")
for first in range(0, len(rows), batch):
    tokens = torch.from_numpy(rows[first : first + batch].astype("int64")).cuda()
    total += nats_of(model.logits(tokens[:, :-1].contiguous()), tokens[:, 1:].contiguous()).sum(dtype=torch.float64)
    if first == 0:
        torch.cuda.synchronize(); first_s = time.monotonic() - begun
torch.cuda.synchronize()
print(total.item() / rows[:, 1:].size, begun, first_s)
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="evaluate-gpu-") as folder:
        root = Path(folder)
        data, checkpoint = write_data(root / "data"), write_checkpoint(root / "checkpoint.pt")
        rows = {
            "device": f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Landlock {sandbox.landlock_abi()}"
        }
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(root / "inductor"), "TRITON_CACHE_DIR": str(root / "triton")}
        base = {}
        for label in ("cold", "warm"):
            value, took, first = plain(data, checkpoint, caches)
            rows[f"plain, {label}"] = f"{took:.1f} s, {first:.1f} s of it to the first batch; {value:.6f} nats"
            base[label] = took
        for label in ("cold", "warm") * int(os.environ.get("REPEATS", "2")):
            answer, took = trusted(root, data, checkpoint, warm=label == "warm")
            number = 1 + sum(name.startswith(f"trusted, {label}") for name in rows)
            over = took - base[label]
            share = f"{over:+.1f} s, {100 * over / TRIAL_S:+.1f} % of a {TRIAL_S:g} s trial"
            rows[f"trusted, {label}, run {number}"] = f"{took:.1f} s: {share}; {json.dumps(answer)}"
        width = max(map(len, rows))
        print("\n".join(f"| {name:<{width}} | {text} |" for name, text in rows.items()))


def plain(data: Path, checkpoint: Path, env: dict[str, str]) -> tuple[float, float, float]:
    """Mean nats, seconds, and seconds to the first batch."""
    words = [sys.executable, "-c", PLAIN, data, checkpoint, ROOT / "train.py", str(BATCH)]
    done = subprocess.run(words, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    value, begun, first = map(float, done.stdout.split())
    return value, time.monotonic() - begun, first


def trusted(
    root: Path, data: Path, checkpoint: Path, src: Path = ROOT, *, warm: bool = False
) -> tuple[dict[str, object], float]:
    """The answer and its seconds. `warm` starts with what the last run compiled, as trials after the baseline do."""
    trial = root / "trial"
    trial.mkdir(exist_ok=True)
    spec = TrialSpec(
        run="r", round=1, candidate="r01-c00", trial="r01-c00-t0", commit="0" * 40, seed=0, tier="default",
        kind="gpt", src=str(src), trial_dir=str(trial), data_dir=str(data), device="cuda",
        metric=Metric(name="val_bpb", value=None, direction=Direction.min),
        train_s=1.0, startup_limit_s=1.0, grace_s=1.0, eval_limit_s=1.0, eval_tokens=10**9, eval_batch_rows=BATCH,
    )  # fmt: skip
    write_json_atomic(trial / "trial.json", to_json(spec))
    scratch = Scratch()
    for name in ("trainer", "scoring", "witness"):
        scratch.place(name)
    archive = root / "compiled.tar"
    if warm:
        for name in ("scoring", "witness"):
            compiled.unpack(archive, scratch.root, name, of="scoring")
    (trial / "checkpoint.pt").write_bytes(checkpoint.read_bytes())
    read_fd, write_fd = os.pipe()
    words = [sys.executable, "-P", "-m", "autoresearch_hpc.trial.evaluate", str(trial / "trial.json")]
    with subprocess.Popen(
        [*words, "--result-fd", str(write_fd), "--private", str(scratch.root)],
        stdin=subprocess.PIPE,
        pass_fds=[write_fd],
    ) as process:
        os.close(write_fd)
        time.sleep(12)  # imports are free: they happen while the trial starts
        begun = time.monotonic()
        process.communicate(b"go\n")
        took = time.monotonic() - begun
    compiled.pack(archive, scratch.root, ["scoring"])
    scratch.remove()
    with os.fdopen(read_fd) as pipe:
        text = pipe.read()
    return json.loads(text) if text else {"status": "none"}, took


def write_data(root: Path) -> Path:
    root.mkdir()
    random = np.random.default_rng(0)

    def file(name: str, rows: int = 0) -> DataFile:
        return DataFile(name=name, size=(root / name).stat().st_size, sha256=sha256_file(root / name), rows=rows)

    def rows(name: str, count: int) -> DataFile:
        random.integers(1, VOCAB, size=(count, SEQ_LEN + 1), dtype=np.uint16).tofile(root / name)
        return file(name, count)

    (root / TOKENIZER).write_text("{}")
    np.full(VOCAB, 4, dtype=np.int32).tofile(root / TOKEN_BYTES)
    manifest = Manifest(
        corpus="random", vocab_size=VOCAB, seq_len=SEQ_LEN, bos_id=0, tokenizer=file(TOKENIZER),
        token_bytes=file(TOKEN_BYTES), train=(rows("train-00000.bin", 8),), val=(rows("val-00000.bin", ROWS),),
    )  # fmt: skip
    write_json_atomic(root / MANIFEST, asdict(manifest))
    return root


def write_checkpoint(path: Path) -> Path:
    """train.py's model with random weights everywhere, so that every layer matters."""
    sys.path.insert(0, str(ROOT))
    import train
    from autoresearch_hpc.harness import Meta

    torch.manual_seed(0)
    with torch.device("cuda"):
        model = train.build_model(Meta(vocab_size=VOCAB, seq_len=SEQ_LEN, bos_id=0))
    state = {name: t + 0.02 * torch.randn_like(t) for name, t in model.state_dict().items()}
    torch.save(state, path)
    return path


if __name__ == "__main__":
    main()
