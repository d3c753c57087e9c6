"""autoresearch_hpc.trial.evaluate: the score against an independent computation, and every way to earn none."""

import json
import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from autoresearch_hpc.dataset import Dataset
from autoresearch_hpc.files import write_json_atomic
from autoresearch_hpc.layout import TrialPaths
from autoresearch_hpc.records import Direction, Metric, TrialSpec, to_json
from autoresearch_hpc.trial import evaluate, serving
from autoresearch_hpc.trial.evaluate import Servers
from autoresearch_hpc.trial.scoring import val_rows

torch.set_num_threads(1)

BIGRAM = """
import torch
from helper_beside import SCALE

class Bigram(torch.nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.table = torch.nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx):
        return SCALE * self.table(idx)

def build_model(meta):
    return Bigram(meta.vocab_size)
"""
FORWARD = "return SCALE * self.table(idx)"


def answer(spec: TrialSpec) -> dict[str, object]:
    """The evaluation in this process, with its servers below."""
    return evaluate.answer(spec, Servers.fork(spec), TrialPaths(Path(spec.trial_dir)).checkpoint)


class Trial:
    """A trial's folders with a candidate in them."""

    def __init__(self, root: Path, data: Path) -> None:
        self.src, self.dir, self.data = root / "src of 'x'", root / "trials" / "t0", data
        self.src.mkdir(parents=True)
        self.dir.mkdir(parents=True)
        (self.src / "helper_beside.py").write_text("SCALE = 2.0\n")

    def candidate(self, source: str = BIGRAM, state: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        (self.src / "train.py").write_text(source, encoding="utf-8")
        if state is None:
            state = {"table.weight": torch.randn(300, 300, generator=torch.Generator().manual_seed(1))}
        torch.save(state, self.dir / "checkpoint.pt")
        return state

    def spec(self, eval_tokens: int = 10**6, eval_batch_rows: int = 5) -> TrialSpec:
        return TrialSpec(
            run="r", round=1, candidate="r01-c00", trial="r01-c00-t0", commit="0" * 40, seed=0, tier="default",
            kind="gpt", src=str(self.src), trial_dir=str(self.dir), data_dir=str(self.data), device="cpu",
            metric=Metric(name="val_bpb", value=None, direction=Direction.min), num_threads=1,
            train_s=1.0, startup_limit_s=1.0, grace_s=1.0, eval_limit_s=1.0,
            eval_tokens=eval_tokens, eval_batch_rows=eval_batch_rows,
        )  # fmt: skip


@pytest.fixture
def trial(tmp_path: Path, tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "helper_beside", raising=False)
    return Trial(tmp_path / "run ü", tiny_dataset)


def by_hand(data: Path, table: np.ndarray, num_rows: int) -> tuple[float, int, int]:
    """bits per byte of a bigram table, token by token in float64."""
    dataset = Dataset(data)
    token_bytes, rows = dataset.token_bytes(), dataset.rows("val")[0][:num_rows]
    nats, tokens, num_bytes = 0.0, 0, 0
    for row in rows:
        for previous, token in pairwise(row):
            if token_bytes[token]:
                logits = table[previous].astype(np.float64)
                nats += math.log(np.exp(logits).sum()) - logits[token]
                tokens += 1
                num_bytes += int(token_bytes[token])
    return nats / math.log(2) / num_bytes, tokens, num_bytes


@pytest.mark.parametrize(("eval_tokens", "num_rows"), [(10**6, 12), (1, 1), (16 * 7, 7), (16 * 7 + 1, 8)])
def test_the_score_is_that_of_an_independent_computation(trial: Trial, eval_tokens: int, num_rows: int) -> None:
    state = trial.candidate()
    value, tokens, num_bytes = by_hand(trial.data, 2.0 * state["table.weight"].numpy(), num_rows)
    result = answer(trial.spec(eval_tokens))
    assert result == {"status": "OK", "value": pytest.approx(value, rel=1e-6), "tokens": tokens, "bytes": num_bytes}
    assert tokens < num_rows * 16  # the special tokens among the targets were left out


def test_the_batch_size_does_not_change_the_score(trial: Trial) -> None:
    trial.candidate()
    values = [answer(trial.spec(eval_batch_rows=rows))["value"] for rows in (1, 5, 100)]
    assert values[1:] == [pytest.approx(values[0], rel=1e-9)] * 2


def test_bfloat16_logits_count(trial: Trial) -> None:
    state = trial.candidate(BIGRAM.replace(FORWARD, FORWARD + ".bfloat16()"))
    value, _, _ = by_hand(trial.data, 2.0 * state["table.weight"].numpy(), 12)
    assert answer(trial.spec())["value"] == pytest.approx(value, rel=1e-2)


@pytest.mark.parametrize(
    ("source", "status", "words"),
    [
        (BIGRAM.replace("def build_model", "def make_model"), "INVALID", "train.py defines no build_model"),
        (BIGRAM.replace("return Bigram(", "return str("), "INVALID", "returned a str"),
        (BIGRAM.replace(FORWARD, FORWARD + "[:, 1:]"), "INVALID", r"logits of shape \(5, 15, 300\), expected"),
        (BIGRAM.replace(FORWARD, FORWARD + ".mean()"), "INVALID", r"logits of shape \(\)"),
        (BIGRAM.replace(FORWARD, "return self.table(idx).long()"), "INVALID", "logits of type torch.int64"),
        (BIGRAM.replace(FORWARD, "return 0.97"), "INVALID", "forward returned a float, not logits"),
        (BIGRAM.replace(FORWARD, FORWARD + " * float('nan')"), "DIVERGED", "not finite"),
        (BIGRAM.replace(FORWARD, FORWARD + " * float('inf')"), "DIVERGED", "not finite"),
        (BIGRAM.replace(FORWARD, "raise MemoryError('no more')"), "OOM", "no more"),
        (BIGRAM.replace(FORWARD, "raise torch.OutOfMemoryError('CUDA out of memory')"), "OOM", "CUDA out of memory"),
        (BIGRAM.replace(FORWARD, "raise KeyError('layer')"), "CRASHED", "layer"),
        (BIGRAM + "\nraise SystemExit(0)\n", "CRASHED", "0"),
        ("def build_model(meta)\n", "CRASHED", "expected ':'"),
    ],
)
def test_what_earns_no_score(trial: Trial, source: str, status: str, words: str) -> None:
    trial.candidate(source)
    result = answer(trial.spec())
    assert result["status"] == status
    assert set(result) == {"status", "type", "message"}
    assert re.search(words, str(result["message"]))


SHORT_OF_MEMORY = """
import os
from pathlib import Path

def use_memory(moment):
    victim = Path(__file__).with_name(f"victim {os.getpid()} {moment}")
    if victim.exists():
        victim.unlink()
        if moment == "killed":
            os.kill(os.getpid(), 9)
        raise torch.OutOfMemoryError("CUDA out of memory")
"""


def short_of_memory(trial: Trial, victim: str, moment: str) -> dict[str, object]:
    """The answer where one of the servers has no memory, at this moment and only then."""
    trial.candidate(
        BIGRAM.replace("import torch\n", "import torch\n" + SHORT_OF_MEMORY)
        .replace("        self.table =", "        use_memory('opening')\n        self.table =")
        .replace("        return SCALE", "        use_memory('at work'); use_memory('killed')\n        return SCALE")
    )
    spec = trial.spec()
    servers = Servers.fork(spec)
    marked = trial.src / f"victim {getattr(servers, victim)._pid} {moment}"
    marked.touch()
    found = evaluate.answer(spec, servers, TrialPaths(trial.dir).checkpoint)
    assert not marked.exists()
    return found


@pytest.mark.parametrize("moment", ["opening", "at work"])
@pytest.mark.parametrize("victim", ["scored", "witness"])
def test_where_there_is_no_memory_for_two_models_one_waits(
    trial: Trial, victim: str, moment: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    trial.candidate()
    expected = answer(trial.spec())
    assert "not enough memory" not in caplog.text
    assert short_of_memory(trial, victim, moment) == expected
    assert caplog.text.count("not enough memory for two models at once: one after the other") == 1


@pytest.mark.parametrize("victim", ["scored", "witness"])
def test_who_is_killed_for_want_of_memory_is_out_of_memory(
    trial: Trial, victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter([0, 0])  # when the servers start; later one more
    monkeypatch.setattr(serving, "oom_kills", lambda: next(kills, 1))
    found = short_of_memory(trial, victim, "killed")
    assert (found["status"], found["type"]) == ("OOM", "SIGKILL")


@pytest.mark.parametrize(
    "state", [{}, {"table.weight": torch.zeros(2, 2)}, {"table.weight": torch.zeros(300, 300), "more": torch.zeros(1)}]
)
def test_a_checkpoint_that_does_not_fit_is_invalid(trial: Trial, state: dict[str, torch.Tensor]) -> None:
    trial.candidate(state=state)
    result = answer(trial.spec())
    assert result["status"] == "INVALID"
    assert "does not fit" in str(result["message"])
    assert "\n" not in str(result["message"])


def test_no_checkpoint_is_invalid(trial: Trial) -> None:
    trial.candidate()
    (trial.dir / "checkpoint.pt").unlink()
    assert answer(trial.spec()) == {
        "status": "INVALID",
        "type": "InvalidCandidate",
        "message": "no checkpoint was saved",
    }


def test_a_checkpoint_that_runs_code_is_refused(trial: Trial, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "owned",)

    trial.candidate()
    torch.save({"table.weight": Payload()}, trial.dir / "checkpoint.pt")
    assert answer(trial.spec())["status"] == "INVALID"
    assert not (tmp_path / "owned").exists()


def test_rows_run_over_several_files() -> None:
    files = [np.full((rows, 5), i, dtype=np.uint16) for i, rows in enumerate((3, 2, 4))]
    assert val_rows(files, eval_tokens=4 * 6)[:, 0].tolist() == [0, 0, 0, 1, 1, 2]
    assert val_rows(files, eval_tokens=1)[:, 0].tolist() == [0]
    assert len(val_rows(files, eval_tokens=10**6)) == 9


def start(spec_path: Path) -> tuple["subprocess.Popen[bytes]", int]:
    read_fd, write_fd = os.pipe()
    command = [sys.executable, "-P", "-m", "autoresearch_hpc.trial.evaluate", str(spec_path)]
    process = subprocess.Popen(
        [*command, "--result-fd", str(write_fd)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(write_fd,),
    )
    os.close(write_fd)
    return process, read_fd


def test_the_process_waits_for_go_and_answers_once(trial: Trial) -> None:
    trial.candidate(BIGRAM + '\nprint(\'{"status": "OK", "value": 0.1}\')\n')
    spec = trial.dir / "trial.json"
    write_json_atomic(spec, to_json(trial.spec()))
    process, read_fd = start(spec)
    with process, os.fdopen(read_fd) as pipe:
        output, _ = process.communicate(b"go\n", timeout=60)
        lines = pipe.read().splitlines()
    assert process.returncode == 0
    assert b"0.1" in output  # what a candidate prints is no answer
    assert len(lines) == 1
    assert json.loads(lines[0]) == answer(trial.spec())


def test_the_process_leaves_silently_where_stdin_ends(trial: Trial) -> None:
    trial.candidate()
    spec = trial.dir / "trial.json"
    write_json_atomic(spec, to_json(trial.spec()))
    process, read_fd = start(spec)
    with process, os.fdopen(read_fd) as pipe:
        output, _ = process.communicate(b"", timeout=60)
        assert pipe.read() == ""
    assert process.returncode == 0
    assert output == b""


def test_a_server_that_cannot_use_a_gpu_goes_on_and_leaves_its_caches_alone() -> None:
    code = """
import os
from autoresearch_hpc.trial.server import _prepare
os.environ.pop("TRITON_CACHE_DIR", None)
os.environ.update(TORCHINDUCTOR_CACHE_DIR="/its/own", CUDA_VISIBLE_DEVICES="")
_prepare()
print(os.environ.get("TRITON_CACHE_DIR"), os.environ["TORCHINDUCTOR_CACHE_DIR"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None /its/own\n"
