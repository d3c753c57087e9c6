"""What another shell sees of a run, from its files alone; and how trials' files are read."""

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from fake_run import FakeRun, cookbook, told_from_luck

from autoresearch_hpc.files import write_json_atomic
from autoresearch_hpc.history import Trial
from autoresearch_hpc.lock import RunLock
from autoresearch_hpc.progress import Progress, Watch, state_of, trial_progress
from autoresearch_hpc.records import Status, to_json
from autoresearch_hpc.status import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / 'runs of "Zoë\'s" team' / "a run")


# progress


def test_a_trial_that_nobody_began_has_no_phase(run: FakeRun) -> None:
    [trial] = run.propose(["baseline"])
    assert trial_progress(run.layout.trial(trial)) == Progress()


def test_claims_phases_and_results_are_read(run: FakeRun) -> None:
    [trial] = run.propose(["baseline"])
    paths = run.layout.trial(trial)
    run.claim(trial)
    progress = trial_progress(paths)
    assert (progress.phase, progress.host, progress.started_at) == ("startup", "node 1", run.now)
    run.claim(trial, "train", ago_s=90)
    progress = trial_progress(paths)
    assert (progress.phase, progress.since) == ("train", run.now - timedelta(seconds=90))
    write_json_atomic(paths.result, to_json(run.result(trial, 0.5)))
    assert trial_progress(paths).result == run.result(trial, 0.5)


def test_the_phases_of_an_attempt_before_the_newest_claim_are_old(run: FakeRun) -> None:
    [trial] = run.propose(["baseline"])
    run.claim(trial, "eval", ago_s=100)
    run.claim(trial, ago_s=10, attempt=11)
    run.claim(trial, ago_s=50, attempt=2)
    progress = trial_progress(run.layout.trial(trial))
    assert (progress.phase, progress.started_at) == ("startup", run.now - timedelta(seconds=10))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"phase": 7, "at": 3}', b'{"phase": "dance"}', b"\xff\xfe"])
def test_files_that_cannot_be_read_say_nothing(run: FakeRun, content: bytes) -> None:
    [trial] = run.propose(["baseline"])
    paths = run.layout.trial(trial)
    paths.root.mkdir(parents=True)
    for path in (paths.phases, paths.result, paths.claim(0), paths.root / "claim-x.json"):
        path.write_bytes(content)
    progress = trial_progress(paths)
    assert (progress.phase, progress.result) == ("startup", None)
    assert progress.started_at is not None  # the claim's own time


def test_a_trial_is_looked_at_once_a_second_and_never_again_when_done(run: FakeRun) -> None:
    [id_] = run.propose(["baseline"])
    clock = [100.0]
    watch = Watch(run.layout, pace_s=1.0, monotonic=lambda: clock[0])
    trial = Trial(id=id_, candidate="r00-c00", round=0, job_name="x", submitted_at=run.now.isoformat())
    assert watch(trial).phase is None
    run.claim(id_, "compile")
    clock[0] += 0.9
    assert watch(trial).phase is None
    clock[0] += 0.2
    assert watch(trial).phase == "compile"
    write_json_atomic(run.layout.trial(id_).result, to_json(run.result(id_, 0.5)))
    clock[0] += 1.1
    done = watch(trial)
    run.layout.trial(id_).result.unlink()
    clock[0] += 10
    assert watch(trial) is done


def test_many_trials_take_turns(run: FakeRun) -> None:
    """One look a second at a shared filesystem, however many trials there are and however often it is asked."""
    trials = [t for e in run.history().entries() for t in e.trials]
    assert trials == []
    ids = run.propose(["a", "b", "c"])
    clock = [100.0]
    watch = Watch(run.layout, pace_s=1.0, monotonic=lambda: clock[0])
    for id_ in ids:
        run.claim(id_, "train")
    trials = [t for e in run.history().entries() for t in e.trials]
    known = []
    for _ in range(12):
        known.append(sum(watch(trial).phase == "train" for trial in trials))
        clock[0] += 0.25
    assert known == [1] * 4 + [2] * 4 + [3] * 4


def test_states_in_the_words_of_people(run: FakeRun) -> None:
    trials = run.propose(["a", "b", "c", "d", "e", "f"])
    run.claim(trials[0], "compile", ago_s=30)
    write_json_atomic(run.layout.trial(trials[0]).root / "unrelated.json", {})
    run.claim(trials[1], "eval", ago_s=-5)  # the node's clock is ahead of ours
    run.done(trials[4], None, Status.OOM)
    run.done(trials[5], None, Status.LOST)
    run.event("trial.dropped", trial=trials[5], reason="node lost")
    history = run.history()
    states = {trials[2]: "PENDING", trials[3]: "RUNNING"}
    seen = [state_of(e, Watch(run.layout), states, run.now) for e in history.entries()]
    assert [s.word for s in seen] == ["compiling", "evaluating", "queued", "starting", "OOM", "retrying"]
    assert [s.elapsed_s for s in seen] == [30.0, 0.0, 0.0, 0.0, 60.0, None]
    assert [s.running for s in seen] == [True, True, False, False, False, False]


def test_of_several_trials_the_one_that_runs_is_shown_with_the_mean_so_far(run: FakeRun) -> None:
    trials = run.propose(["a", "b"])
    run.done(trials[0], 1.0, total_s=100.0)
    run.done(trials[1], None, Status.OOM)
    run.event("trials.wanted", round=0, stage="look 1", trials={"r00-c00": 2})
    for trial in ("r00-c00-t1", "r00-c00-t2"):
        run.event("submit.intent", round=0, job_name="ar-0-1", trials=[trial])
        run.event("submit.done", round=0, job_name="ar-0-1", jobs={trial: "7"})

    def state(candidate: str) -> tuple[str, float | None, bool, float | None]:
        seen = state_of(run.history().entry(candidate), Watch(run.layout), {}, run.now)
        return seen.word, seen.elapsed_s, seen.running, seen.value

    assert state("r00-c00") == ("queued", 0.0, False, 1.0)
    run.claim("r00-c00-t1", "train", ago_s=30)  # t2 still waits
    assert state("r00-c00") == ("training", 30.0, True, 1.0)
    write_json_atomic(run.layout.trial("r00-c00-t1").result, to_json(run.result("r00-c00-t1", 2.0)))
    assert state("r00-c00") == ("queued", 0.0, False, 1.5), "a result that was not collected counts as well"
    run.done("r00-c00-t1", 2.0)
    run.done("r00-c00-t2", None, Status.TIMEOUT)
    assert state("r00-c00") == ("OK", 480.0, False, 1.5), "it has values"
    assert state("r00-c01") == ("OOM", 60.0, False, None)


def test_before_submission_a_candidate_is_proposed_or_committed(run: FakeRun) -> None:
    run.propose(["a"], submit=False)
    [entry] = run.history().entries()
    assert state_of(entry, Watch(run.layout), {}).word == "committed"
    entry.candidate = None
    assert state_of(entry, Watch(run.layout), {}).word == "proposed"


# the command


def _status(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


def test_a_running_run(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.round([("baseline", 1.010748, "keep")])
    trials = run.propose(["a", "b", "c"])
    run.done(trials[0], 1.0)
    run.claim(trials[1], "train", ago_s=10)
    with RunLock(run.layout.lock):
        out = _status(capsys, "a run", "--runs-dir", run.layout.root.parent)
    lines = out.splitlines()
    assert lines[0].startswith("a run: running, controller pid ")
    assert lines[2] == "round 1 of 3, 1 of 3 trials done"
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("r01-")}
    assert rows["r01-c00"] == ["OK", "8:00", "1/1", "1.000000", "a"]
    assert rows["r01-c01"][0] == "training"
    assert rows["r01-c01"][1].endswith("/21:00")
    assert rows["r01-c02"][0] == "queued"
    assert "best so far: 1.010748 (r00-c00, 1 trial)" in lines
    assert "not yet judged: 1.000000 (r01-c00, 1 trial)" in lines
    assert "2 of 40 trials" in out
    assert max(map(len, lines)) <= 80
    assert "resume" not in out


def test_a_result_that_no_controller_collected_is_shown(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    [trial] = run.propose(["baseline"])
    run.claim(trial, "eval")
    write_json_atomic(run.layout.trial(trial).result, to_json(run.result(trial, 0.123456789)))
    out = _status(capsys, run.layout.root)
    assert "a run: stopped, no controller is at work" in out
    assert "OK" in out
    assert "0.123457" in out
    assert "resume: the command it was started with, and tag=a run" in out


def test_an_interrupted_run_says_how_to_go_on(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    [trial] = run.propose(["baseline"])
    run.claim(trial, "train")
    run.event("run.interrupted", reason="SIGINT", cancelled=[trial])
    out = _status(capsys, run.layout.root)
    assert " cancelled " in out
    assert out.startswith("a run: interrupted by SIGINT\n")
    assert "tag=a run" in out


def test_an_ended_run_shows_its_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cookbook(tmp_path / "runs" / "x")
    out = _status(capsys, "--runs-dir", tmp_path / "runs")
    assert out.startswith("x: ended: the plan is complete\n")
    assert "speed-up 2.4x" in out
    assert "0.998559" in out


def test_an_ended_run_tells_gains_from_luck(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told_from_luck(tmp_path / "runs" / "x")
    lines = _status(capsys, "--runs-dir", tmp_path / "runs").splitlines()
    assert "kept r01-c00   +0.005200 ± 0.001300, expected +0.004900" in lines
    assert any("r01-c00, 3 trials, noise 0.000600" in line for line in lines)


def test_a_run_without_rounds(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLock(run.layout.lock):
        assert "a run: running" in _status(capsys, run.layout.root)
    run.layout.journal.write_text("")
    assert _status(capsys, run.layout.root).startswith("a run: stopped")


def test_all_runs_in_one_table(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.round([("baseline", 1.5, "keep")])
    runs_dir = run.layout.root.parent
    other = cookbook(runs_dir / "other")
    broken = FakeRun(runs_dir / "broken")
    broken.layout.journal.write_text("not a journal\n")
    for at, each in enumerate((broken, run, other)):
        os.utime(each.layout.journal, (at, at))
    out = _status(capsys, "--all", "--runs-dir", runs_dir)
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["other", "a", "broken"]
    assert "0.998559" in lines[2]
    assert "ended" in lines[2]
    assert "1.500000" in lines[3]
    assert "damaged" in lines[4]
    assert max(map(len, lines)) <= 80


def test_no_runs_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--all"], ["x"]):
        assert main([*arguments, "--runs-dir", str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert str(tmp_path) in err


def test_status_changes_nothing(run: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run.propose(["baseline"])

    def everything() -> dict[str, tuple[int, bytes]]:
        files = [p for p in run.layout.root.rglob("*") if p.is_file()]
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}

    before = everything()
    _status(capsys, run.layout.root)
    assert everything() == before


def test_it_is_quick_and_imports_nothing_slow(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "runs" / "big")
    for _ in range(30):
        run.round([(f"KNOB {i} -> {i + 1}", 1.0 - i / 1000, "discard") for i in range(16)])
    for trial in run.propose([str(i) for i in range(16)]):
        run.claim(trial, "train")
    code = (
        "import json, sys\nfrom autoresearch_hpc import status\n"
        "code = status.main(['--runs-dir', sys.argv[1]])\n"
        "slow = {'torch', 'pandas', 'matplotlib', 'hydra', 'omegaconf', 'optuna', 'submitit', 'git', 'numpy'}\n"
        "print(json.dumps([code, sorted(slow & set(sys.modules))]))"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert time.monotonic() - started < 2
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
    assert "round 30 of 3, 0 of 16 trials done" in done.stdout
