"""The worker as a real process: it writes a result whatever happens, and nothing of a trial outlives it."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fake_trial import MARK, FakeTrial

from autoresearch_hpc.dataset import Dataset
from autoresearch_hpc.records import Phases, Status
from autoresearch_hpc.trial import memory

PYTHON = f"'{sys.executable}' -S"


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., FakeTrial]:
    def make(script: str, line: str = f"{PYTHON} fit.py", **settings: Any) -> FakeTrial:
        given = {k: settings.pop(k) for k in list(settings) if k.startswith("metric_") or k == "env"}
        trial = FakeTrial(tmp_path / "it's", {"fit.py": script}, **settings)
        trial.command(line, **given)
        return trial

    return make


Make = Callable[..., FakeTrial]


def phases_of(phases: Phases) -> float:
    return sum(s or 0.0 for s in (phases.startup_s, phases.compile_s, phases.train_s, phases.eval_s))


def test_ok(make: Make) -> None:
    trial = make(
        "import os, time; time.sleep(0.3); print('loss: 3'); print('loss: 0.25'); open('out', 'w').write(os.getcwd())"
    )
    result = trial.run(CUDA_VISIBLE_DEVICES="0")
    assert (result.status, result.metric.value, result.evaluator, result.error) == (
        Status.OK,
        0.25,
        "self-reported",
        None,
    )
    assert (result.run, result.trial, result.attempt, result.seed, result.tier) == (
        "tag",
        "r01-c00-t0",
        0,
        11,
        "h100",
    )
    assert result.gpu.visible == "0"
    assert result.torch == importlib.metadata.version("torch")
    assert result.slurm is None
    assert result.phases.train_s is not None
    assert 0.3 <= result.phases.train_s < 3
    assert result.phases.total_s is not None
    assert abs(phases_of(result.phases) - result.phases.total_s) < 0.3
    assert result.host == os.uname().nodename
    span = datetime.fromisoformat(result.ended_at) - datetime.fromisoformat(result.started_at)
    assert 0.3 <= span.total_seconds() < 5
    assert not (trial.src / "out").exists(), "a script writes into its own copy"
    assert json.loads(trial.paths.claim(0).read_text())["visible"] == "0"


def test_the_queue_time_is_from_the_submission(make: Make) -> None:
    result = make("print('loss: 1')", submitted_at="2026-01-31T12:00:00.000+00:00").run()
    assert result.phases.queue_s is not None
    started = datetime.fromisoformat(result.started_at) - datetime.fromisoformat("2026-01-31T12:00:00+00:00")
    assert abs(result.phases.queue_s - started.total_seconds()) < 0.01


@pytest.mark.parametrize(
    ("script", "status", "type_", "message"),
    [
        ("raise ValueError('bad\\nshape')", Status.CRASHED, "ValueError", "bad"),
        ("import sys; sys.exit(3)", Status.CRASHED, "ExitStatus", "exit status 3"),
        ("raise MemoryError", Status.OOM, "MemoryError", ""),
        (
            "class OutOfMemoryError(Exception): __module__ = 'torch'\n"
            "raise OutOfMemoryError('CUDA out of memory. Tried')",
            Status.OOM,
            "torch.OutOfMemoryError",
            "CUDA out of memory. Tried",
        ),
        ("import os; os.kill(os.getpid(), 9)", Status.CRASHED, "SIGKILL", "for want of host memory"),
        ("import os; os.abort()", Status.CRASHED, "SIGABRT", "ended by signal SIGABRT"),
        ("print('no metric')", Status.INVALID, "NoMetric", "no match of"),
        ("print('loss: many')", Status.INVALID, "NoMetric", "must have one group that matches a number"),
        ("print('loss: nan')", Status.DIVERGED, "Diverged", "nan"),
        ("print('loss: -inf')", Status.DIVERGED, "Diverged", "-inf"),
    ],
    ids=lambda value: value if isinstance(value, Status) else "",
)
def test_a_failure_is_data(make: Make, script: str, status: Status, type_: str, message: str) -> None:
    result = make(script).run()
    assert result.status is status
    assert result.metric.value is None
    assert result.error
    assert result.error.type == type_
    assert message in result.error.message
    if status is Status.CRASHED and type_ == "ValueError":
        assert "Traceback" in result.error.tail
    assert result.phases.total_s is not None
    assert abs(phases_of(result.phases) - result.phases.total_s) < 0.3


IN_GROUP = """
import os, sys
with open(sys.argv.pop(1) + "/cgroup.procs", "w") as file: file.write(str(os.getpid()))
from autoresearch_hpc.trial import worker
worker.main()
"""


@pytest.fixture
def limited_group() -> Iterator[Path]:
    """A control group below this process's, with a limit of 200 MB."""
    counter = memory._counter(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())
    if counter is None:
        pytest.skip("no memory control group is mounted here")
    group = counter.parent / f"autoresearch-test-{os.getpid()}"
    limit = group / ("memory.limit_in_bytes" if counter.name == "memory.oom_control" else "memory.max")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"this user may not make a control group: {error}")
    try:
        if not limit.exists():
            pytest.skip(f"{counter.parent} does not hand the memory controller on")
        limit.write_text(str(200 << 20))
        yield group
    finally:
        group.rmdir()


@pytest.mark.parametrize("line", [f"{PYTHON} fit.py", f"exec {PYTHON} fit.py"], ids=["below a shell", "itself"])
def test_a_job_above_its_memory_limit_is_out_of_memory(make: Make, limited_group: Path, line: str) -> None:
    """The kernel kills the script, the largest; the worker lives and tells it from any other kill."""
    trial = make("x = []\nwhile True: x.append(bytearray(b'x' * (8 << 20)))", line)
    with trial.worker(program=["-c", IN_GROUP, str(limited_group)]) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    result = trial.result()
    assert result.error
    assert (result.status, result.error.type) == (Status.OOM, "SIGKILL")
    assert result.error.message.startswith("host memory: the job's memory limit was reached")
    assert trial.left() == []


STUBBORN = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)
def detach():
    if os.fork(): os._exit(0)
    os.setsid()
    if os.fork(): os._exit(0)
if os.fork() == 0:
    detach()  # its own session, an orphan twice over
    if os.fork() == 0:
        os.setpgid(0, 0)
    open("ready%d" % os.getpid(), "w").close()
    time.sleep(60)
    os._exit(0)
while len([n for n in os.listdir(".") if n.startswith("ready")]) < 2: time.sleep(0.01)
with open("../up", "w") as file: file.write("up\\n")
time.sleep(float(sys.argv[1]))
print("loss: 1")
"""


def test_a_command_that_takes_too_long_ends_with_all_that_it_started(make: Make) -> None:
    trial = make(STUBBORN, f"{PYTHON} fit.py 60", train_s=0.6, grace_s=0.4)
    result = trial.run()
    assert result.status is Status.TIMEOUT
    assert result.error
    assert result.error.message == "the command took longer than 1 s"
    assert result.phases.total_s is not None
    assert 1.0 <= result.phases.total_s < 2.0
    assert (trial.paths.root / "up").exists(), "the grandchildren were there"


def test_a_command_that_stops_itself_is_ended_at_its_limit(make: Make) -> None:
    code = "import os, signal; open('../up', 'w').write('up\\n'); os.kill(0, signal.SIGSTOP); print('loss: 1')"
    trial = make(code, train_s=0.4, grace_s=0.2)
    result = trial.run()
    assert (trial.paths.root / "up").exists()
    assert result.status is Status.TIMEOUT
    assert result.phases.total_s is not None
    assert 0.6 <= result.phases.total_s < 2.0


LINGERS = """
import json, os, sys, time
def build_model(meta): time.sleep(60)
if __name__ == "__main__":
    pipe = int(os.environ["AUTORESEARCH_EVENTS_FD"])
    say = lambda event: os.write(pipe, json.dumps({"event": event}).encode() + b"\\n")
    say("clock"); open(json.load(open(os.environ["AUTORESEARCH_SESSION"]))["checkpoint"], "w").close()
    say("saved"); time.sleep(1.5)
"""


def test_a_trainers_slow_exit_is_part_of_the_evaluations_limit(tmp_path: Path, tiny_dataset: Path) -> None:
    """All phases together stay below the wall limit that is Slurm's, and the budget's worst case."""
    limits = {"startup_limit_s": 20.0, "train_s": 0.5, "grace_s": 3.0, "eval_limit_s": 4.0}
    trial = FakeTrial(tmp_path, {"train.py": LINGERS}, kind="gpt", data_dir=str(tiny_dataset), **limits)
    result = trial.run()
    assert result.status is Status.TIMEOUT
    assert result.error
    assert result.error.message == "the evaluation took longer than 4 s"
    assert result.phases.eval_s is not None
    assert 4.0 <= result.phases.eval_s < 4.8


def test_what_a_finished_command_leaves_behind_is_ended(make: Make) -> None:
    trial = make(STUBBORN, f"{PYTHON} fit.py 0")
    assert trial.run().status is Status.OK


@pytest.mark.parametrize(
    ("number", "status", "words"),
    [
        (signal.SIGTERM, Status.CANCELLED, "cancelled or preempted (SIGTERM)"),
        (signal.SIGUSR2, Status.TIMEOUT, "the job's time limit is near (SIGUSR2)"),
        (signal.SIGUSR1, Status.CANCELLED, "told to stop (SIGUSR1)"),
    ],
)
def test_a_stopping_signal(make: Make, number: signal.Signals, status: Status, words: str) -> None:
    trial = make(STUBBORN, f"{PYTHON} fit.py 60")
    with trial.worker() as process:
        trial.wait_for(trial.paths.root / "up")
        assert len(trial.left()) >= 4, "worker, shell, script, grandchildren"
        took = trial.stop(process, number)
        assert took < 1.0
    assert trial.left() == []
    result = trial.result()
    assert result.status is status
    assert result.error
    assert (result.error.type, result.error.message) == ("Stopped", words)
    assert result.phases.train_s
    assert result.phases.total_s is not None
    assert abs(phases_of(result.phases) - result.phases.total_s) < 0.3


def test_a_signal_may_end_the_script_before_it_reaches_the_worker(make: Make) -> None:
    result = make("", "(sleep 0.1; kill -TERM $PPID) & kill -TERM $$").run()
    assert result.error
    assert (result.status, result.error.type) == (Status.CANCELLED, "Stopped")


def test_a_worker_that_is_killed_outright_takes_its_child_along(make: Make) -> None:
    trial = make("open('../up', 'w').write('up\\n'); import time; time.sleep(60)", f"exec {PYTHON} fit.py")
    with trial.worker() as process:
        trial.wait_for(trial.paths.root / "up")
        process.kill()
        process.wait()
        for _ in range(100):
            if not trial.left():
                break
            subprocess.run(["sleep", "0.01"], check=True)
        assert trial.left() == []
    assert not trial.paths.result.exists()


SPILL = "import os, json; json.dump(dict(os.environ), open('../env', 'w')); print('loss: 1')"


def test_no_secret_reaches_the_script(make: Make) -> None:
    trial = make(SPILL, env={"LR": "0.5", "OWN_TOKEN": "given by the user on purpose"}, num_threads=3)
    secrets = {
        "OPENAI_API_KEY": "1", "HF_TOKEN": "1", "AWS_SECRET_ACCESS_KEY": "1", "DB_PASSWORD": "1", "SLURM_JWT": "1",
        "ssh_auth_sock": "1", "MYSQL_PWD": "1", "GITHUB_PAT": "1", "https_proxy": "http://user:pass@proxy:80",
        "GOOGLE_APPLICATION_CREDENTIALS": "1",
    }  # fmt: skip
    kept = {
        "CUDA_VISIBLE_DEVICES": "2", "LD_LIBRARY_PATH": "/opt/x", "HOME": "/h", "TOKENIZERS_PARALLELISM": "false",
        "http_proxy": "http://proxy:80", "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8",
    }  # fmt: skip
    trial.run(**secrets, **kept)
    seen = json.loads((trial.paths.root / "env").read_text())
    assert not secrets.keys() & seen.keys()
    assert {name: seen.get(name) for name in kept} == kept
    assert (seen["LR"], seen["OWN_TOKEN"], seen["AUTORESEARCH_SEED"]) == ("0.5", "given by the user on purpose", "11")
    assert (seen["OMP_NUM_THREADS"], seen[MARK]) == ("3", trial.mark)


def test_a_script_sees_one_gpu_of_several(make: Make) -> None:
    trial = make(SPILL)
    assert trial.run(CUDA_VISIBLE_DEVICES="3,5").gpu.visible == "3,5"
    assert json.loads((trial.paths.root / "env").read_text())["CUDA_VISIBLE_DEVICES"] == "3"


def test_a_second_worker_of_an_attempt_leaves_without_a_trace(make: Make) -> None:
    trial = make("open('../up', 'w').write('up\\n'); import time; time.sleep(4); print('loss: 1')")
    with trial.worker() as first:
        trial.wait_for(trial.paths.root / "up")
        before = {path.name for path in trial.paths.root.iterdir()}
        with trial.worker() as second:
            output, _ = second.communicate(timeout=20)
        assert second.returncode == 0
        assert "attempt 0 is taken" in output
        assert {path.name for path in trial.paths.root.iterdir()} == before
        assert first.wait(20) == 0
    assert trial.result().status is Status.OK
    stamp = trial.paths.result.stat().st_mtime_ns
    with trial.worker() as third:
        assert third.wait(20) == 0
    assert trial.paths.result.stat().st_mtime_ns == stamp


def test_a_requeued_job_runs_a_cancelled_trial_again_and_a_finished_one_not(make: Make) -> None:
    trial = make(STUBBORN, f"{PYTHON} fit.py 60")
    with trial.worker() as process:
        trial.wait_for(trial.paths.root / "up")
        trial.stop(process, signal.SIGTERM)
    assert (trial.result().status, trial.result().attempt) == (Status.CANCELLED, 0)
    trial.command(f"{PYTHON} fit.py 0")
    result = trial.run(SLURM_RESTART_COUNT="1", SLURM_JOB_ID="42", SLURM_ARRAY_JOB_ID="40", SLURM_ARRAY_TASK_ID="2")
    assert (result.status, result.attempt) == (Status.OK, 1)
    assert result.slurm
    assert (result.slurm.job_id, result.slurm.array_task_id) == ("42", 2)
    stamp = trial.paths.result.stat().st_mtime_ns
    assert trial.run(SLURM_RESTART_COUNT="2").attempt == 1
    assert trial.paths.result.stat().st_mtime_ns == stamp


def test_a_finished_trial_is_left_without_a_claim(make: Make) -> None:
    trial = make("print('loss: 1')")
    trial.run()
    trial.run(SLURM_RESTART_COUNT="1")
    assert not trial.paths.claim(1).exists(), "else the result would not be the newest attempt's"


def test_a_worker_that_a_newer_attempt_has_overtaken_keeps_its_result_to_itself(make: Make) -> None:
    """A node that was cut off and came back: Slurm had requeued its job meanwhile."""
    script = (
        "import os, time; n = os.environ['AUTORESEARCH_N']; open('../up' + n, 'w').write('up\\n'); "
        "time.sleep(5 if n == '0' else 0.5); print('loss: ' + n)"
    )
    trial = make(script)
    inbox = trial.paths.root / "in box"
    inbox.mkdir()
    trial.spec = replace(trial.spec, inbox=str(inbox))
    with trial.worker(AUTORESEARCH_N="0") as cut_off:
        trial.wait_for(trial.paths.root / "up0")
        with trial.worker(AUTORESEARCH_N="1", SLURM_RESTART_COUNT="1") as newer:
            trial.wait_for(trial.paths.root / "up1")
            assert newer.wait(20) == 0
            assert cut_off.poll() is None, "the older one ends last"
            (inbox / "r01-c00-t0").unlink()
        output, _ = cut_off.communicate(timeout=20)
    assert cut_off.returncode == 0
    assert "overtaken by a newer one" in output
    assert (trial.result().attempt, trial.result().metric.value) == (1, 1.0)
    assert not list(inbox.iterdir())


def test_a_result_is_announced_once_it_is_there(make: Make, tmp_path: Path) -> None:
    inbox = tmp_path / "in 'box' ü"
    inbox.mkdir()
    trial = make("import os; assert not os.listdir(os.environ['INBOX']); print('loss: 1')", inbox=str(inbox))
    trial.run(INBOX=str(inbox))
    assert [(path.name, path.read_bytes()) for path in inbox.iterdir()] == [("r01-c00-t0", b"")]


def test_a_result_that_cannot_be_announced_is_a_result(make: Make, tmp_path: Path) -> None:
    trial = make("print('loss: 1')", inbox=str(tmp_path / "nowhere"))
    with trial.worker() as process:
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "the result is not announced: " in output
    assert trial.result().status is Status.OK


def test_files_that_another_node_sees_late_are_waited_for(make: Make, tmp_path: Path) -> None:
    trial = make("print('loss: 1')")
    manifest, script, hidden = tmp_path / "array.json", trial.src / "fit.py", tmp_path / "hidden"
    with trial.worker():
        pass  # writes trial.json
    for path in trial.paths.root.glob("*"):
        if path != trial.paths.spec:
            path.unlink()
    trial.paths.spec.rename(hidden)
    script.rename(tmp_path / "hidden.py")
    command = [sys.executable, "-P", "-m", "autoresearch_hpc.trial.worker", "--array", str(manifest)]
    with subprocess.Popen(command, env={**os.environ, "SLURM_ARRAY_TASK_ID": "0"}) as process:
        for appear in (
            lambda: manifest.write_text(json.dumps({"trials": [str(trial.paths.spec)]})),
            lambda: hidden.rename(trial.paths.spec),
            lambda: (tmp_path / "hidden.py").rename(script),
        ):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.7)
            appear()
        assert process.wait(20) == 0
    assert trial.result().status is Status.OK


def test_a_result_cut_short_by_a_crash_does_not_count(make: Make) -> None:
    trial = make("print('loss: 1')")
    trial.paths.result.write_text('{"run":')
    assert trial.run().status is Status.OK


def test_a_changed_source_is_not_run(make: Make) -> None:
    trial = make("open('../ran', 'w'); print('loss: 1')")
    (trial.src / "fit.py").write_text("open('../ran', 'w'); print('loss: 0')")
    result = trial.run()
    assert result.status is Status.LOST
    assert result.error
    assert result.error.type == "SourceChanged"
    assert str(trial.src / "fit.py") in result.error.message
    assert not (trial.paths.root / "ran").exists()


@pytest.mark.parametrize("damage", ["gone", "size", "other"])
def test_other_data_is_refused(make: Make, tiny_dataset: Path, damage: str) -> None:
    root = tiny_dataset
    trial = make("print('loss: 1')", data_dir=str(root), data_sha256=Dataset(root).manifest.sha256)
    if damage == "gone":
        root.rename(root.with_name("elsewhere"))
    elif damage == "size":
        (root / "val-00000.bin").write_bytes(b"")
    else:
        trial.spec = replace(trial.spec, data_sha256="0" * 64)
    result = trial.run()
    assert (result.status, result.error and result.error.type) == (Status.LOST, "DataError")
    assert result.error
    assert str(root) in result.error.message


def test_a_gpu_where_there_is_none_is_the_nodes_fault(make: Make) -> None:
    result = make("print('loss: 1')", device="cuda").run(CUDA_VISIBLE_DEVICES="", PATH="/usr/bin:/bin")
    assert (result.status, result.error and result.error.type) == (Status.LOST, "NoGpu")
    assert result.gpu.count == 0


def test_the_unforeseen_is_a_result_too(make: Make) -> None:
    trial = make("print('loss: 1')")
    trial.spec = replace(trial.spec, src=str(trial.src / "nowhere"), src_sha256={})
    result = trial.run()
    assert result.status is Status.LOST
    assert result.error
    assert "Traceback" in result.error.tail


NOISE = """
import os, sys, time
pipe = int(os.environ["AUTORESEARCH_EVENTS_FD"])
os.set_blocking(pipe, True)
def write(data):
    while data: data = data[os.write(pipe, data):]
write(b"\\0\\xff garbage\\n{\\"event\\": \\"warm")
write(b"x" * 3_000_000 + b"\\n")
write(b"[" * 60_000 + b"\\n" + b"9" * 60_000 + b"\\n" + b'{"a":' * 10_000 + b"\\n")
write(b'{"event": 3}\\n[]\\nnull\\n"x"\\n' * 2000)
write(b'{"event": "warmup"}\\n' * 3000)
end = time.time() + float(sys.argv[1])
while time.time() < end: write(b"{}\\n" * 10_000)
print("loss: 1")
"""


def test_garbage_in_the_event_pipe_does_no_harm(make: Make) -> None:
    result = make(NOISE, f"{PYTHON} fit.py 0.3").run()
    assert (result.status, result.metric.value) == (Status.OK, 1.0)


def test_a_flood_of_events_does_not_stop_the_clock(make: Make) -> None:
    result = make(NOISE, f"{PYTHON} fit.py 60", train_s=0.8, grace_s=0.2).run()
    assert result.status is Status.TIMEOUT
    assert result.phases.total_s is not None
    assert result.phases.total_s < 2.5


def test_an_array_task_finds_its_trial_by_its_index(make: Make, tmp_path: Path) -> None:
    trial = make("print('loss: 1')")
    manifest = tmp_path / "array.json"
    manifest.write_text(json.dumps({"trials": ["/nowhere/trial.json", str(trial.paths.spec)]}))
    with trial.worker():
        pass  # writes trial.json
    for path in (*trial.paths.root.glob("claim-*"), *trial.paths.root.glob("result.json")):
        path.unlink()
    command = [sys.executable, "-P", "-m", "autoresearch_hpc.trial.worker", "--array", str(manifest)]
    subprocess.run(command, env={**os.environ, "SLURM_ARRAY_TASK_ID": "1"}, check=True, capture_output=True)
    assert trial.result().status is Status.OK
