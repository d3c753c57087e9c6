"""bubblewrap around a whole trial, as a site may add it: a real one, where it is installed."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_trial import FakeTrial
from scripts import TRAIN_S, script

from autoresearch_hpc.files import write_json_atomic
from autoresearch_hpc.records import Direction, Metric, Status, to_json

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bwrap() -> str:
    """Skip where bubblewrap is missing or may not do its work; in CI that is a failure."""
    found, reason = shutil.which("bwrap"), "bubblewrap is not installed: run `make bubblewrap`"
    if found:
        words = [found, "--ro-bind", "/", "/", "--proc", "/proc", "--unshare-pid", "--unshare-net", "true"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return found
        reason = f"bubblewrap may not make namespaces here: {done.stderr.strip()}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


ATTACK = """
    import glob
    for name in OTHERS:
        try:
            Path(name).write_text("x")
            print("WROTE", name)
        except OSError as error:
            blocked(error)
    try:
        socket.create_connection(("127.0.0.1", 22), 5)
    except OSError as error:
        print("NETWORK", type(error).__name__, error.errno)
    print("PROCESSES", len(glob.glob("/proc/[0-9]*")))
"""


def test_a_trial_in_bubblewrap_without_landlock(bwrap: str, tmp_path: Path, data: Path) -> None:
    other, shared = tmp_path / "other", Path(f"/dev/shm/attack-{os.getpid()}")
    other.mkdir()
    trial = FakeTrial(
        tmp_path / "trial",
        {"train.py": script(saved=ATTACK.replace("OTHERS", repr([str(other / "result.json"), str(shared)])))},
        kind="gpt", data_dir=str(data), train_s=TRAIN_S, startup_limit_s=60.0, eval_tokens=10**6, eval_batch_rows=32,
        metric=Metric(name="val_bpb", value=None, direction=Direction.min), num_threads=1,
    )  # fmt: skip
    trial.spec = replace(trial.spec, eval_limit_s=60.0, sandbox="none")
    write_json_atomic(trial.paths.spec, to_json(trial.spec))
    run, where = str(tmp_path / "trial"), str(data)
    words = [
        bwrap, "--ro-bind", "/", "/", "--dev-bind", "/dev", "/dev", "--proc", "/proc", "--tmpfs", "/dev/shm",
        "--tmpfs", "/tmp", "--unshare-pid", "--unshare-net", "--bind", run, run, "--ro-bind", where, where,
        *(word for path in (ROOT, sys.prefix) for word in ("--ro-bind", str(path), str(path))),  # may be in /tmp
        "--chdir", "/", "--die-with-parent",
        sys.executable, "-P", "-m", "autoresearch_hpc.trial.worker", "--trial", str(trial.paths.spec),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "task.sandbox=none: the candidate can read and write" in done.stderr
    result, log = trial.result(), trial.paths.log.read_text()
    assert result.status is Status.OK, log
    assert "WROTE " + str(other) not in log
    assert list(other.iterdir()) == []
    assert not shared.exists(), "it had a /dev/shm of its own"
    assert "NETWORK" in log
    assert int(log.split("PROCESSES ")[1].split()[0]) < 12
