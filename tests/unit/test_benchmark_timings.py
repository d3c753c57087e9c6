"""benchmarks/timings.py on written runs: time around interruptions, shares, ratios; and headline.py's joined caches."""

import importlib.util
import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_run import FakeRun

from autoresearch_hpc.records import Gpu, Phases, Status, to_json

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name: str, patch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def timings() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        yield load("timings", patch)


@pytest.fixture(scope="module")
def headline() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)  # as for a script
        yield load("headline", patch)


PHASES = Phases(startup_s=8.0, compile_s=4.0, train_s=20.0, eval_s=7.0, total_s=40.0)
VALUES = (1.3, 1.1, 1.2, 1.0)


class Played:
    """Four trials of 40 s each, 20 of them training."""

    def __init__(self, root: Path, slots: int) -> None:
        self.run = FakeRun(root)
        self.run.layout.config.write_text(f"cluster: {{max_parallel: {slots}}}\ntask: {{train_s: 20.0}}\n")
        self.trials = self.run.propose(["baseline", "a", "b", "c"])
        self.run.wait(1)

    def result(self, trial: str, place: int, step_ms: float) -> Any:
        """Of a trial that begins now, with its log."""
        log = self.run.layout.trial(trial).log
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("".join(f"step={k} loss=1.0 step_ms={step_ms:.2f}\n" for k in range(80)))
        more = {"phases": PHASES, "total_s": 40.0, "tokens": 80_000_000}
        gpu = Gpu(name="H200", uuid=f"GPU-{place}", count=1, visible=str(place))
        return to_json(self.run.result(trial, VALUES[self.trials.index(trial)], gpu=gpu, **more))

    def train(self, *trials: str, step_ms: float) -> None:
        """All at once, a GPU each."""
        results = {trial: self.result(trial, place, step_ms) for place, trial in enumerate(trials)}
        self.run.wait(40)
        for trial, result in results.items():
            self.run.event("trial.done", trial=trial, result=result)
        self.run.event("trial.charged", gpu_s=dict.fromkeys(trials, 41.0))

    def finish(self) -> FakeRun:
        self.run.wait(1)
        values = {trial.rpartition("-")[0]: value for trial, value in zip(self.trials, VALUES, strict=True)}
        self.run.judge({name: "keep" if value == 1.0 else "discard" for name, value in values.items()}, values)
        self.run.wait(15)  # for the accounting: no GPU is wanted then
        self.run.event("run.stopped", reason="the plan is complete")
        return self.run


def at_once(root: Path) -> FakeRun:
    played = Played(root, 4)
    played.train(*played.trials, step_ms=250)
    return played.finish()


def single(root: Path) -> FakeRun:
    """Interrupted 10 s after its second trial's start, and resumed long after its end."""
    played = Played(root, 1)
    first, second, *others = played.trials
    played.train(first, step_ms=245)
    result = played.result(second, 0, 245)
    played.run.wait(10)
    played.run.event("run.interrupted", reason="SIGTERM", cancelled=[])
    played.run.wait(290)
    played.run.event("run.resumed", pid=2, host="node 1")
    played.run.event("trial.done", trial=second, result=result)
    for trial in others:
        played.train(trial, step_ms=245)
    return played.finish()


def test_wall_time_is_what_the_run_needed(timings: Any, tmp_path: Path) -> None:
    fast, slow = timings.Run(at_once(tmp_path / "a").layout), timings.Run(single(tmp_path / "b").layout)
    assert (fast.name, fast.slots, fast.complete) == ("K=4, 20 s", 4, True)
    assert fast.wall_s == pytest.approx(1 + 40 + 1)
    assert slow.wall_s == pytest.approx(1 + 40 + 40 + 80 + 1), "260 s without controller and trial do not count"
    assert fast.gpu_s == slow.gpu_s == 160.0
    assert fast.charged_s == 164.0
    assert slow.charged_s is None, "one trial was never charged"
    assert fast.curve()[0] == (pytest.approx(41.0), 1.0)
    assert [value for _, value in slow.curve()] == [1.3, 1.1, 1.1, 1.0]


def test_waiting_for_what_a_vanished_machine_took_along_is_no_wall_time(timings: Any, tmp_path: Path) -> None:
    played = Played(tmp_path / "a", 4)
    *others, last = played.trials
    played.train(*others, step_ms=250)
    played.run.wait(500)
    played.run.event("run.resumed", pid=2, host="node 2")
    played.run.wait(66)
    played.run.done(last, None, Status.LOST)
    played.run.event("trial.dropped", trial=last, reason="the job ended as UNKNOWN and left no result")
    again = f"{last[:-1]}1"
    played.run.event("submit.intent", round=0, job_name="ar-0-again", tier="", trials=[again])
    played.trials[-1] = again
    played.train(again, step_ms=250)
    run = timings.Run(played.finish().layout)
    assert run.num_dropped == 1
    assert run.wall_s == pytest.approx(1 + 40 + 40 + 1)


def test_table_and_pace(timings: Any, tmp_path: Path) -> None:
    runs = [timings.Run(at_once(tmp_path / "a").layout), timings.Run(single(tmp_path / "b").layout)]
    rows = {
        cells[0]: cells[1:] for line in timings.table(runs).splitlines() if (cells := line.strip("| ").split(" | "))
    }
    assert rows["wall time, s"] == ["42.0", "162.0", "3.857"]
    assert rows["GPU-seconds, worker's start to result"] == ["160.0", "160.0", "1.000"]
    assert rows["GPUs busy with trials"][:2] == ["95.2%", "98.8%"]
    assert rows["the rest"][:2] == ["1.00", "1.00"]
    assert rows["training of the trials' time"][:2] == ["50.0%", "50.0%"]
    assert rows["training of the GPU-seconds by sacct"][0] == "48.8%"
    assert rows["M tokens/s"][:2] == ["4.000", "4.082"]
    found = timings.pace(*runs)
    assert found.num_pairs == 4
    assert found.tokens_per_s == pytest.approx((0.98, 0.98))
    assert found.median_step == pytest.approx((0.98, 0.98))


def test_what_differs_is_no_pair(timings: Any, tmp_path: Path) -> None:
    runs = [timings.Run(at_once(tmp_path / name).layout) for name in ("a", "b")]
    runs[1].by_edit = {(name, "another"): trial for (name, _), trial in runs[1].by_edit.items()}
    assert timings.pace(*runs) is None


def test_incomplete_run_has_a_table_and_pictures(timings: Any, tmp_path: Path) -> None:
    played = Played(tmp_path / "a", 4)
    played.train(*played.trials[:2], step_ms=250)
    run = timings.Run(played.run.layout)
    assert not run.complete
    assert len(run.trials) == 2
    assert "K=4, 20 s (not complete)" in timings.table([run])
    for draw in (timings.draw_curves, timings.draw_phases):
        draw([run], tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 5_000


def archive(path: Path, root: str, files: dict[str, str]) -> None:
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for name, text in {"root": root, **files}.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))


def test_joined_caches_are_made_in_one_place(headline: Any, tmp_path: Path) -> None:
    archive(tmp_path / "1/kind.tar", "/tmp/one", {"trainer/caches/a": "of /tmp/one", "trainer/caches/b": "b"})
    archive(tmp_path / "2/kind.tar", "/tmp/two", {"trainer/caches/b": "again", "scoring/caches/c": "of /tmp/two"})
    archive(tmp_path / "3/kind.tar", "/tmp/three", {"scoring/caches/d": "of /tmp/three"})
    headline.merge([tmp_path / name for name in "123"], tmp_path / "joined")
    with tarfile.open(tmp_path / "joined/kind.tar") as tar:
        found = {member.name: tar.extractfile(member).read().decode() for member in tar}
    assert found == {
        "root": "/tmp/one",
        "trainer/caches/a": "of /tmp/one",
        "trainer/caches/b": "b",
        "scoring/caches/c": "of /tmp/one",
    }
