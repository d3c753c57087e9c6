"""autoresearch_hpc.harness.session: the clock, the events, the checkpoint, and what is refused."""

import gc
import json
import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from autoresearch_hpc.errors import AutoresearchError, ConfigError, DataError
from autoresearch_hpc.harness import Session
from autoresearch_hpc.harness.session import choose_device

torch.set_num_threads(1)


class Pipe:
    """The worker's end of the events' pipe."""

    def __init__(self) -> None:
        self._read, self.write = os.pipe()
        os.set_blocking(self._read, False)

    def events(self) -> list[dict[str, Any]]:
        try:
            text = os.read(self._read, 65536).decode()
        except BlockingIOError:
            return []
        return [json.loads(line) for line in text.splitlines()]

    def close(self) -> None:
        os.close(self._read)
        os.close(self.write)


@pytest.fixture(autouse=True)
def collects_garbage() -> Iterator[None]:
    """Sessions switch it off, and on again when their clock starts."""
    yield
    gc.enable()
    gc.unfreeze()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def describe(tiny_dataset: Path, tmp_path: Path, pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a session.json with the given changes, as the worker does."""

    def write(**changes: object) -> Path:
        path = tmp_path / "session of 'x'.json"
        spec = {
            "schema": 1,
            "data_dir": str(tiny_dataset),
            "seed": 7,
            "train_s": 0.2,
            "device": "cpu",
            "checkpoint": str(tmp_path / "trial dir" / "checkpoint.pt"),
            "num_threads": 1,
        }
        path.write_text(json.dumps({**spec, **changes}), encoding="utf-8")
        monkeypatch.setenv("AUTORESEARCH_SESSION", str(path))
        monkeypatch.setenv("AUTORESEARCH_EVENTS_FD", str(pipe.write))
        return path

    return write


def test_a_session_from_warm_up_to_checkpoint(
    describe: Any, pipe: Pipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    describe()
    session = Session.open()
    assert (session.meta.vocab_size, session.meta.seq_len, session.meta.bos_id) == (300, 16, 0)
    assert session.device == torch.device("cpu")
    assert session.seed == 7
    assert torch.get_num_threads() == 1
    assert pipe.events() == []

    x, y = session.warmup_batch(3)
    session.warmup_batch(3)
    assert x.shape == y.shape == (3, 16)
    assert x.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert 0 <= int(x.min()) <= int(x.max()) < 300
    assert pipe.events() == [{"event": "warmup"}]

    assert session.progress == 0.0
    session.start()
    assert pipe.events() == [{"event": "clock"}]
    x, y = next(session.batches(4))
    assert x.shape == y.shape == (4, 16)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert not session.expired
    time.sleep(0.25)
    assert session.expired
    assert session.progress == 1.0

    model = torch.nn.Linear(3, 2)
    session.save(model, steps=5, tokens=320, flops_per_token=1e6)
    assert pipe.events() == [
        {"event": "stopped"},
        {"event": "saved", "steps": 5, "tokens": 320, "num_params": 8, "peak_vram_mb": None, "mfu": None},
    ]
    state = torch.load(tmp_path / "trial dir" / "checkpoint.pt", weights_only=True)
    assert torch.equal(state["weight"], model.weight)
    assert [p.name for p in (tmp_path / "trial dir").iterdir()] == ["checkpoint.pt"]

    at_rest = session.elapsed_s
    session.summary(depth=2)
    assert session.elapsed_s == at_rest >= 0.25
    assert pipe.events() == [{"event": "summary"}]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "---"
    assert "num_steps:        5" in lines
    assert lines[-1] == "depth:            2"
    assert not any(line.startswith("val_bpb") for line in lines)


def test_nothing_is_compiled_before_the_caches_are_filled(describe: Any, pipe: Pipe, tmp_path: Path) -> None:
    filled = tmp_path / "filled"
    describe(caches_filled=str(filled))
    session = Session.open()
    warmed_up = threading.Event()
    threading.Thread(target=lambda: (session.warmup_batch(3), warmed_up.set()), daemon=True).start()
    assert not warmed_up.wait(0.3)
    assert pipe.events() == []
    filled.touch()
    assert warmed_up.wait(5.0)
    assert pipe.events() == [{"event": "warmup"}]


def test_garbage_is_collected_from_the_clocks_start_on(describe: Any) -> None:
    class Node:
        pass

    describe()
    session = Session.open()
    assert not gc.isenabled()
    node = Node()
    node.itself, gone = node, weakref.ref(node)  # type: ignore[attr-defined]
    del node
    assert gone() is not None
    session.start()
    assert gc.isenabled()
    assert gone() is None, "what compiling left goes before what is left is frozen"


def test_no_batches_before_the_clock_and_no_warm_up_after_it(describe: Any, tmp_path: Path) -> None:
    describe()
    session = Session.open()
    with pytest.raises(RuntimeError, match="before the clock"):
        session.batches(2)
    with pytest.raises(RuntimeError, match="never started"):
        session.save(torch.nn.Linear(1, 1), steps=0, tokens=0)
    session.start()
    with pytest.raises(RuntimeError, match="warm-up"):
        session.warmup_batch(2)
    with pytest.raises(RuntimeError, match="already"):
        session.start()
    with pytest.raises(RuntimeError, match="save first"):
        session.summary()
    assert not (tmp_path / "trial dir").exists()


def test_the_seed_decides_batches_and_random_numbers(describe: Any) -> None:
    def draw(seed: int) -> tuple[list[Any], ...]:
        describe(seed=seed)
        session = Session.open()
        numbers = torch.rand(3).tolist()
        warmup = session.warmup_batch(2)[0].tolist()
        session.start()
        return numbers, warmup, next(session.batches(5))[0].tolist()

    assert draw(1) == draw(1)
    assert all(a != b for a, b in zip(draw(1), draw(2), strict=True))


def test_a_divergence_is_told_and_leaves_no_checkpoint(describe: Any, pipe: Pipe, tmp_path: Path) -> None:
    describe()
    session = Session.open()
    session.start()
    pipe.events()
    session.diverged(12)
    assert pipe.events() == [{"event": "diverged", "step": 12}]
    assert not (tmp_path / "trial dir").exists()


def test_a_compiled_model_is_saved_under_its_own_names(describe: Any, tmp_path: Path) -> None:
    class Wrapper(torch.nn.Module):  # what torch.compile returns holds the model like this
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self._orig_mod = model

    describe()
    session = Session.open()
    session.start()
    session.save(Wrapper(torch.nn.Linear(2, 2)), steps=1, tokens=1)
    state = torch.load(tmp_path / "trial dir" / "checkpoint.pt", weights_only=True)
    assert sorted(state) == ["bias", "weight"]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"data_dir": "/no where"}, DataError, "no data in /no where"),
        ({"schema": 2}, AutoresearchError, "schema 2"),
        ({"surprise": 1}, AutoresearchError, "surprise"),
        ({"device": "tpu"}, ConfigError, "unknown device 'tpu'"),
    ],
)
def test_a_wrong_description_is_one_line(
    describe: Any, changes: dict[str, object], error: type[AutoresearchError], words: str
) -> None:
    describe(**changes)
    with pytest.raises(error, match=words) as caught:
        Session.open()
    assert "\n" not in str(caught.value)


def test_a_torn_description_is_one_line(describe: Any) -> None:
    describe().write_text('{"schema": 1, "da')
    with pytest.raises(AutoresearchError, match="unreadable AUTORESEARCH_SESSION"):
        Session.open()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA GPU")
def test_cuda_without_a_gpu_is_an_error_and_auto_is_the_cpu() -> None:
    with pytest.raises(AutoresearchError, match="no CUDA GPU is visible") as caught:
        choose_device("cuda")
    assert caught.value.exit_code == 1
    assert choose_device("auto") == torch.device("cpu")
