"""A trial of a training script that speaks the event protocol, and every way in which it can go wrong.

The scripts here write to the pipe themselves and need no torch; real models are trained in test_train and
test_evaluate.
"""

import json
import os
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_trial import FakeTrial

from autoresearch_hpc import sandbox
from autoresearch_hpc.files import read_json
from autoresearch_hpc.records import Direction, Failure, Metric, Status
from autoresearch_hpc.trial import gpt, processes
from autoresearch_hpc.trial.children import StopFlag
from autoresearch_hpc.trial.ending import Ending
from autoresearch_hpc.trial.phases import PhaseLog
from autoresearch_hpc.trial.scratch import Scratch

HEAD = """
import json, os, sys, time
pipe = int(os.environ["AUTORESEARCH_EVENTS_FD"])
session = json.load(open(os.environ["AUTORESEARCH_SESSION"]))
def say(event, **more): os.write(pipe, (json.dumps({"event": event, **more}) + "\\n").encode())
def save(): open(session["checkpoint"], "w").close()
"""
METRIC = Metric(name="val_bpb", value=None, direction=Direction.min)
LIMITS = {"startup_limit_s": 20.0, "train_s": 0.5, "grace_s": 0.5, "eval_limit_s": 20.0}

Make = Callable[..., FakeTrial]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(code: str, **settings: Any) -> FakeTrial:
        given = {"metric": METRIC, **LIMITS, **settings}
        return FakeTrial(tmp_path / "it's a trial", {"train.py": HEAD + code}, kind="gpt", **given)

    return make


class Quiet(StopFlag):
    """A flag without signal handlers, which would be this process's."""

    def __init__(self) -> None:
        self.reason, self.timed_out = None, False


@pytest.fixture
def with_evaluator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts this code in the place of the evaluator, whose import of torch takes seconds."""

    def replace_by(code: str) -> None:
        evaluator, python = tmp_path / "evaluator.py", tmp_path / "python"
        evaluator.write_text(
            "import os, sys, time; pipe = int(sys.argv[sys.argv.index('--result-fd') + 1])\n"
            f"say = lambda s: os.write(pipe, s.encode() + b'\\n')\n{code}"
        )
        python.write_text(
            f"""#!/bin/sh\ncase "$*" in *trial.evaluate*) exec '{sys.executable}' -S '{evaluator}' "$@";; """
            f"""*) exec '{sys.executable}' -S "$@";; esac\n"""
        )
        python.chmod(0o755)
        monkeypatch.setattr(processes.sys, "executable", str(python))

    return replace_by


@pytest.mark.parametrize(
    ("code", "limits", "status", "type_", "message"),
    [
        ("time.sleep(60)", {"startup_limit_s": 0.8}, "TIMEOUT", "Timeout", "start-up and compilation took longer"),
        ("say('warmup'); time.sleep(60)", {"startup_limit_s": 0.8}, "TIMEOUT", "Timeout", "took longer than 0.8 s"),
        ("say('clock'); time.sleep(60)", {}, "INVALID", "Overrun", "more than 0.4 s after the clock's 0.5 s"),
        ("say('clock'); say('stopped'); time.sleep(60)", {}, "TIMEOUT", "Timeout", "saving took longer than 0.5 s"),
        ("say('clock'); say('saved')", {}, "INVALID", "NoCheckpoint", "no checkpoint was saved: No such file"),
        ("say('clock'); save(); say('saved'); time.sleep(60)", {}, "TIMEOUT", "Timeout", "exiting after its"),
        ("pass", {}, "INVALID", "NoCheckpoint", "train.py ended without a saved checkpoint"),
        ("say('clock')", {}, "INVALID", "NoCheckpoint", "train.py ended without a saved checkpoint"),
        ("say('clock'); say('diverged', step=7)", {}, "DIVERGED", "Diverged", "not finite at step 7"),
        ("raise ValueError('early')", {}, "CRASHED", "ValueError", "early"),
        ("say('clock'); raise KeyError('late')", {}, "CRASHED", "KeyError", "'late'"),
        ("say('clock'); save(); say('saved'); sys.exit(4)", {}, "CRASHED", "ExitStatus", "exit status 4"),
        ("say('clock'); raise MemoryError()", {}, "OOM", "MemoryError", ""),
        ("say('saved'); say('diverged')", {}, "INVALID", "NoCheckpoint", "without a saved checkpoint"),
        ("import nosuchmodule", {}, "CRASHED", "ModuleNotFoundError", "nosuchmodule"),
        ("this does not parse", {}, "CRASHED", "SyntaxError", "invalid syntax"),
    ],
)  # fmt: skip
def test_every_failure_is_told_apart(
    make: Make,
    with_evaluator: Callable[[str], None],
    code: str,
    limits: dict[str, float],
    status: str,
    type_: str,
    message: str,
) -> None:
    trial = make(code, **{"overrun_s": 0.4, **limits})
    phases = PhaseLog(trial.paths.phases)
    with_evaluator("sys.stdin.read()")
    ending = gpt.GptTrial(trial.spec, trial.paths, phases, Quiet()).run()
    assert ending.status is Status(status)
    assert ending.value is None
    assert ending.error
    assert ending.error.type == type_
    assert message in ending.error.message
    seconds = phases.seconds()
    assert abs(sum(seconds.values()) - phases.total_s) < 0.3
    assert ("compile" in seconds) is ("warmup" in code)
    assert ("train" in seconds) is ("clock" in code)
    assert not trial.paths.checkpoint.exists()


def test_overruns_end_in_time_with_all_descendants(make: Make) -> None:
    trial = make("""
import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0: os.setsid(); time.sleep(60)
say('clock'); time.sleep(60)
""")
    result = trial.run()
    assert (result.status, result.error and result.error.type) == (Status.INVALID, "Overrun")
    assert result.error
    assert "raise task.overrun_s" in result.error.message
    assert result.phases.train_s is not None
    assert 0.5 + trial.spec.overrun_s <= result.phases.train_s < 1.5 + trial.spec.overrun_s


@pytest.mark.parametrize("suits", [True, False])
def test_a_baselines_caches_that_do_not_suit_cost_time_and_nothing_else(
    make: Make, with_evaluator: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suits: bool
) -> None:
    scratch = Scratch()
    for place in ("trainer", "scoring"):
        scratch.place(place)
    (scratch.root / "trainer" / "caches" / "inductor").mkdir()
    (scratch.root / "trainer" / "caches" / "inductor" / "graph").write_text("stale")
    with_evaluator('sys.stdin.read(2); say(\'{"status": "OK", "value": 1.5}\')')
    trial = make(f"""
import json, os
filled = json.load(open(os.environ["AUTORESEARCH_SESSION"]))["caches_filled"]
while not os.path.exists(filled): time.sleep(0.01)
stale = os.path.exists(os.environ["TORCHINDUCTOR_CACHE_DIR"] + "/graph")
say('warmup')
if stale and not {suits}: raise RuntimeError("stale")
say('clock'); say('stopped'); save(); say('saved'); print("started", "warm" if stale else "cold")
""")
    store = gpt.compiled.Store(tmp_path, "key", trial.spec)
    monkeypatch.setattr(gpt.compiled.Store, "of", lambda spec, gpu: store)
    gpt.compiled.pack(store.baseline, scratch.root, ["trainer", "scoring"])
    scratch.remove()
    phases = PhaseLog(trial.paths.phases)
    ending = gpt.GptTrial(trial.spec, trial.paths, phases, Quiet(), "a GPU").run()
    assert (ending.status, ending.value) == (Status.OK, 1.5)
    assert trial.paths.log.read_text().splitlines()[-1] == ("started warm" if suits else "started cold")
    assert store.baseline.exists() is suits
    assert abs(sum(phases.seconds().values()) - phases.total_s) < 0.5, "phases add up, both starts together"


def test_what_took_long_to_compile_is_kept_as_it_was_before_there_was_data(
    make: Make, with_evaluator: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else a trial could leave what it has learned for the next one; nor does a link fetch what is not its own."""
    secret = tmp_path / "secret"
    secret.write_text("validation data")
    trial = make(f"""
import os; caches = os.environ["TRITON_CACHE_DIR"]
os.makedirs(caches); os.symlink({str(secret)!r}, caches + "/link")
say('warmup'); time.sleep(0.3); open(caches + "/kernel", "w").write("compiled")
say('clock')
import socket; socket.socket(fileno=int(os.environ["AUTORESEARCH_DATA_FD"])).recv(1)
open(caches + "/kernel", "w").write("learned"); open(caches + "/weights", "w").write("learned")
say('stopped'); save(); say('saved')
""")  # fmt: skip
    store = gpt.compiled.Store(tmp_path, "key", replace(trial.spec, commit="1" * 40, parent="2" * 40))
    monkeypatch.setattr(gpt.compiled.Store, "of", lambda spec, gpu: store)
    monkeypatch.setattr(gpt.GptTrial, "_hand_over", lambda self, fds: self._door.send(b"d"))
    with_evaluator('sys.stdin.read(2); say(\'{"status": "OK", "value": 1.5}\')')
    for long_s, kept in ((1.0, False), (0.2, True)):
        monkeypatch.setattr(gpt.compiled, "LONG_S", long_s)
        ending = gpt.GptTrial(trial.spec, trial.paths, PhaseLog(trial.paths.phases), Quiet(), "a GPU").run()
        assert (ending.status, store.best() != store.baseline) == (Status.OK, kept)
    with tarfile.open(store.best()) as tar:
        held = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        assert set(held) == {"root", "trainer/caches/triton/kernel"}
        assert held["trainer/caches/triton/kernel"].read() == b"compiled"  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["auto", "none"])
def test_only_what_is_shut_in_spawns_its_compilers(
    make: Make, with_evaluator: Callable[[str], None], mode: str
) -> None:
    with_evaluator("sys.stdin.read()")
    names = ["TORCHINDUCTOR_WORKER_START", "TORCHINDUCTOR_COMPILE_THREADS"]
    trial = make(f"print(*map(os.environ.get, {names}))", sandbox=mode)
    gpt.GptTrial(trial.spec, trial.paths, PhaseLog(trial.paths.phases), Quiet()).run()
    spawned = f"spawn {min(8, len(os.sched_getaffinity(0)))}\n"
    assert trial.paths.log.read_text() == (spawned if sandbox.usable(mode) else "None None\n")


def test_who_finds_all_compiled_has_no_pool_of_compilers(
    make: Make, with_evaluator: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_evaluator("sys.stdin.read()")
    trial, scratch = make("print(os.environ['TORCHINDUCTOR_COMPILE_THREADS'])"), Scratch()
    child = replace(trial.spec, round=1, candidate="r01-c00", commit="1" * 40, parent="2" * 40)
    store = gpt.compiled.Store(tmp_path, "key", child)
    monkeypatch.setattr(gpt.compiled.Store, "of", lambda spec, gpu: store)

    def threads() -> str:
        gpt.GptTrial(child, trial.paths, PhaseLog(trial.paths.phases), Quiet(), "a GPU").run()
        return trial.paths.log.read_text().splitlines()[-1]

    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "3")
    for name in ("trainer", "scoring"):
        scratch.place(name)
    gpt.compiled.pack(store.baseline, scratch.root, ["trainer", "scoring"])
    assert threads() == "3", "the baseline's may not be all"
    (tmp_path / "key").mkdir()
    for commit, expected in (("2" * 40, "3"), ("1" * 40, "1")):  # the parent's, its own
        gpt.compiled.pack(tmp_path / "key" / f"{commit}.tar", scratch.root, ["trainer"])
        assert threads() == expected
    scratch.remove()


def test_who_has_summed_up_is_not_waited_for(make: Make, with_evaluator: Callable[[str], None]) -> None:
    with_evaluator('sys.stdin.read(2); say(\'{"status": "OK", "value": 1.5}\')')
    trial = make("say('clock'); save(); say('saved'); print('---', flush=True); say('summary'); time.sleep(60)")
    ending = gpt.GptTrial(trial.spec, trial.paths, PhaseLog(trial.paths.phases), Quiet()).run()
    assert (ending.status, ending.value) == (Status.OK, 1.5)
    assert trial.paths.log.read_text() == "---\n"


def test_a_crash_of_its_own_stays_a_crash(make: Make, with_evaluator: Callable[[str], None]) -> None:
    with_evaluator("sys.stdin.read()")
    trial = make("print('once'); raise RuntimeError('its own')")
    ending = gpt.GptTrial(trial.spec, trial.paths, PhaseLog(trial.paths.phases), Quiet()).run()
    assert ending.status is Status.CRASHED
    assert trial.paths.log.read_text().splitlines().count("once") == 1


def test_nothing_is_written_through_a_link_of_the_scripts(
    make: Make, with_evaluator: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    linked = threading.Event()

    def late(archive: Path | None, root: Path, place: str, of: str = "") -> bool:
        while not (root / "trainer" / "caches-filled").is_symlink():
            time.sleep(0.01)
        linked.set()
        return False

    monkeypatch.setattr(gpt.compiled, "unpack", late)
    with_evaluator("sys.stdin.read()")
    trial = make(f"os.symlink({str(tmp_path / 'elsewhere')!r}, session['caches_filled']); time.sleep(0.5)")
    ending = gpt.GptTrial(trial.spec, trial.paths, PhaseLog(trial.paths.phases), Quiet()).run()
    assert ending.error
    assert ending.error.type == "NoCheckpoint"
    assert linked.is_set()
    assert not (tmp_path / "elsewhere").exists()


def test_a_signal_during_training(make: Make) -> None:
    trial = make("say('clock'); print('up'); time.sleep(60)", train_s=60.0)
    with trial.worker() as process:
        trial.wait_for(trial.paths.log)
        assert trial.stop(process, signal.SIGTERM) < 1.0
    assert trial.left() == []
    assert trial.result().status is Status.CANCELLED


def test_the_session_says_what_is_asked(make: Make, tmp_path: Path) -> None:
    trial = make("print(json.dumps(session)); print(os.getcwd())", num_threads=2, data_dir=None, seed=5)
    trial.run()
    text, cwd = trial.paths.log.read_text().splitlines()
    session = json.loads(text)
    checkpoint = Path(session.pop("checkpoint"))
    assert Path(session.pop("caches_filled")).is_relative_to(checkpoint.parents[1])
    assert session == {"schema": 1, "seed": 5, "train_s": 0.5, "device": "cpu", "num_threads": 2}
    assert not checkpoint.is_relative_to(trial.paths.root)
    assert not checkpoint.parent.exists(), "it was private to the trial"
    assert cwd == str(trial.src)


def test_nothing_that_the_script_says_of_itself_can_hurt(make: Make) -> None:
    wild = "steps=10**400, tokens=-3, num_params=True, peak_vram_mb=10**400, mfu=float('inf')"
    result = make(f"say('clock'); say('diverged', step='\\n' * 9, {wild})").run()
    assert result.status is Status.DIVERGED
    facts = (result.steps, result.tokens, result.num_params, result.peak_vram_mb, result.mfu)
    assert facts == (None, None, None, None, None)


def test_a_script_that_repeats_its_events_is_charged_once(make: Make) -> None:
    flood = "for _ in range(20_000): say('warmup')\n"
    result = make(f"say('warmup'); time.sleep(0.3)\n{flood}say('clock')\n{flood}say('diverged', step=1)").run()
    assert result.status is Status.DIVERGED
    assert result.phases.compile_s is not None
    assert result.phases.compile_s >= 0.3


# the evaluator's side, with one that says what we like


@pytest.fixture
def answer(make: Make, with_evaluator: Callable[[str], None]) -> Callable[..., Ending]:
    """The ending of a good training whose evaluator runs this code."""

    def answer(code: str, **settings: Any) -> Ending:
        trial = make("say('warmup'); say('clock'); save(); say('saved', steps=9, tokens=90, mfu=0.5)", **settings)
        with_evaluator(f"assert sys.stdin.readline() == 'go\\n'\n{code}")
        ending = gpt.GptTrial(trial.spec, trial.paths, PhaseLog(trial.paths.phases), Quiet()).run()
        assert not trial.paths.checkpoint.exists(), "checkpoints are large"
        assert trial.phase() == "eval"
        return ending

    return answer


def test_an_evaluated_model(answer: Callable[..., Ending]) -> None:
    assert answer("""say('{"status": "OK", "value": 1.25}')""") == Ending(
        status=Status.OK, value=1.25, steps=9, tokens=90, mfu=0.5
    )


def test_a_failed_evaluation(answer: Callable[..., Ending]) -> None:
    ending = answer("""say('{"status": "OOM", "type": "torch.OutOfMemoryError", "message": "so large"}')""")
    assert (ending.status, ending.value) == (Status.OOM, None)
    assert ending.error == Failure(type="torch.OutOfMemoryError", message="so large")


@pytest.mark.parametrize(
    "line",
    [
        "{}", '{"status": "OK"}', '{"status": "OK", "value": "0.1"}', '{"status": "OK", "value": true}',
        '{"status": "OK", "value": NaN}', '{"status": "OK", "value": 1e999}', '{"status": "LOST"}',
        '{"status": "CANCELLED", "type": "x", "message": "y"}', '{"status": ["OK"], "value": 1}',
        '{"status": "SPLENDID", "value": 0.1}', '{"status": "OK", "value": 1' + "0" * 400 + "}",
    ],
)  # fmt: skip
def test_an_answer_that_makes_no_sense_is_never_a_score(answer: Callable[..., Ending], line: str) -> None:
    ending = answer(f"say({line!r})")
    assert (ending.status, ending.value) == (Status.INVALID, None)
    assert ending.error
    assert ending.error.type == "BadAnswer"
    assert len(ending.error.message) < 300


def test_an_evaluator_that_dies(answer: Callable[..., Ending]) -> None:
    ending = answer("raise ValueError('x')")
    assert (ending.status, ending.error and ending.error.type) == (Status.CRASHED, "ValueError")


def test_an_evaluator_that_hangs(answer: Callable[..., Ending]) -> None:
    begun = time.monotonic()
    ending = answer("time.sleep(60)", eval_limit_s=0.5)
    assert time.monotonic() - begun < 5
    assert (ending.status, ending.error and ending.error.type) == (Status.TIMEOUT, "Timeout")


def test_the_real_evaluator_answers_the_worker(make: Make, tiny_dataset: Path) -> None:
    trial = make("say('clock'); save(); say('saved', steps=1)")
    source = trial.src / "train.py"  # it is imported by the evaluator too, where there is no session
    source.write_text(source.read_text().replace(HEAD, f"if __name__ != '__main__': raise SystemExit\n{HEAD}"))
    trial.spec = replace(trial.spec, num_threads=1, data_dir=str(tiny_dataset), src_sha256={})
    result = trial.run()
    assert (result.status, result.error and result.error.type) == (Status.CRASHED, "SystemExit")
    assert result.phases.eval_s is not None
    assert read_json(trial.paths.phases)["phase"] == "eval"
