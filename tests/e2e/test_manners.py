"""A controller on a login node: it outlives the session that started it, and it is small."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import scenarios
from toy import Toy

pytestmark = pytest.mark.usefixtures("no_slurm")


@pytest.fixture
def local(toy: Callable[..., Toy]) -> Callable[..., Toy]:
    def make(**settings: object) -> Toy:
        return toy(cluster="local", **{"k": 1, "rounds": 0, "baseline": "joined", "sleep_s": 3, **settings})

    return make


def on_terminal(toy: Toy, *words: str) -> "tuple[subprocess.Popen[bytes], int]":
    """The search in a session of its own with a terminal, as ssh makes them; the terminal's other end."""
    ours, theirs = os.openpty()
    argv = ["setsid", "--ctty", *words, sys.executable, "-m", "autoresearch_hpc", *toy.words("session")]
    env = {**os.environ, "TRAINED": str(toy.trained_log), "TERM": "xterm"}
    # A test run that was itself started by nohup hands on that SIGHUP is ignored.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    process = subprocess.Popen(argv, cwd=toy.root, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    signal.signal(signal.SIGHUP, before)
    os.close(theirs)
    return process, ours


def drain(terminal: int, until: Callable[[], object], timeout_s: float = 30) -> bytes:
    """Read what the terminal shows, which never blocks its writers that way."""
    seen, deadline = b"", time.monotonic() + timeout_s
    os.set_blocking(terminal, False)
    while not until():
        assert time.monotonic() < deadline, seen
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # nothing to read now, or nobody who writes: nohup's output goes to a file
            time.sleep(0.05)
    return seen


@pytest.mark.parametrize("wrapper", [[], ["nohup"]], ids=["plain", "nohup"])
def test_it_survives_the_end_of_the_session(local: Callable[..., Toy], wrapper: list[str]) -> None:
    toy = local()
    process, terminal = on_terminal(toy, *wrapper)
    try:
        drain(terminal, lambda: len(toy.trained()) == 2)
        assert process.poll() is None
        os.close(terminal)  # SIGHUP to the session's leader, EIO to all who write
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    scenarios.complete(toy, "session")
    log = (toy.run_dir("session") / "controller.log").read_text()
    assert log.count("the terminal is gone: going on without it") == (0 if wrapper else 1)
    assert log.count("status=OK") == 2
    assert "round=0 incumbent=" in log.splitlines()[-1]
    assert (toy.run_dir("session") / "report.html").exists()


def test_a_terminal_that_ends_without_a_signal(local: Callable[..., Toy]) -> None:
    """A job in the background of a shell that disowned it hears of the end only from what it writes."""
    toy = local()
    wait = "import signal, sys, os; signal.signal(signal.SIGHUP, lambda *_: None); p = os.fork();"
    wait += "p or (signal.signal(signal.SIGHUP, signal.SIG_DFL), os.execvp(sys.argv[1], sys.argv[1:]));"
    wait += "sys.exit(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]))"  # the leader takes the SIGHUP, as a shell does
    process, terminal = on_terminal(toy, sys.executable, "-c", wait)
    try:
        shown = drain(terminal, lambda: len(toy.trained()) == 2)
        assert shown
        os.close(terminal)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    scenarios.complete(toy, "session")


def test_a_hangup_while_output_goes_to_a_file_changes_nothing(local: Callable[..., Toy]) -> None:
    toy = local()
    run = toy.search("one")
    scenarios.until_training(toy, "one", run)
    run.process.send_signal(signal.SIGHUP)
    out, err = run.finish()
    scenarios.complete(toy, "one")
    assert "status=OK" in err
    assert "autoresearch/one" in out


def test_a_controller_never_imports_torch_nor_pandas(local: Callable[..., Toy]) -> None:
    """From its start to its report, rounds and judgements included: login nodes have no room.

    With the effects of knobs in them: test_factorial_runs.py.
    """
    toy = local(k=9, rounds=1, sleep_s=0, decide="significant", noise=0.1)
    program = (
        "import runpy, sys\n"
        "try: runpy.run_module('autoresearch_hpc', run_name='__main__', alter_sys=True)\n"
        "finally: print('imported', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    words = [sys.executable, "-c", program, *toy.words("light")]
    env = {**os.environ, "TRAINED": str(toy.trained_log)}
    done = subprocess.run(words, cwd=toy.root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scenarios.complete(toy, "light")
    imported = set(done.stdout.splitlines()[-1].split()[1:])
    assert {"autoresearch_hpc", "hydra", "scipy", "matplotlib"} <= imported
    assert imported.isdisjoint({"torch", "tokenizers", "pyarrow", "huggingface_hub", "pandas", "statsmodels"})


def test_a_controller_that_prepares_data_stays_small(tmp_path: Path) -> None:
    """The quickstart's data: its tokenizer is trained in a child, which ends with its parent."""
    repository = tmp_path / "research"
    subprocess.run([sys.executable, "-m", "autoresearch_hpc.init", str(repository)], check=True, capture_output=True)
    words = [sys.executable, "-m", "autoresearch_hpc", "+round=quickstart", "tag=small", "plan.max_rounds=0"]
    log = tmp_path / "log"
    work = repository / "data"

    def start() -> "subprocess.Popen[bytes]":
        with log.open("wb") as file:
            return subprocess.Popen(words, cwd=repository, stdout=file, stderr=file)

    killed = start()
    scenarios.wait(lambda: list(work.glob("*.partial/recipe.json")), None)
    child = _child(killed.pid)
    killed.kill()
    killed.wait()
    scenarios.wait(lambda: not Path(f"/proc/{child}").exists(), None, timeout_s=5)

    run, peak_mb = start(), 0.0
    while run.poll() is None:
        status = Path(f"/proc/{run.pid}/status").read_text()
        if "VmHWM" in status:
            peak_mb = max(peak_mb, int(status.split("VmHWM:")[1].split()[0]) / 1024)
        time.sleep(0.02)
    text = log.read_text()
    assert run.returncode == 0, text
    assert "resuming from" in text
    assert "prepared" in text
    print(f"quickstart's controller: {peak_mb:.0f} MB at most")
    assert 50 < peak_mb < 300


def test_data_that_cannot_be_prepared_is_one_line(tmp_path: Path) -> None:
    repository = tmp_path / "a 'repository'"
    subprocess.run([sys.executable, "-m", "autoresearch_hpc.init", str(repository)], check=True, capture_output=True)
    words = ["+round=quickstart", "corpus.name=files", "corpus.files=['no such é.txt']"]
    done = subprocess.run(
        [sys.executable, "-m", "autoresearch_hpc", *words], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "no such é.txt" in done.stderr
    assert not (repository / "runs").exists()


def _child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)
