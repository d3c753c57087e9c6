"""benchmarks/headline.py in small: two rounds on pretended GPUs, one of the searches stopped on the way and resumed."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAND_IN = (
    "plan.max_rounds=1",
    "task=command",
    "task.command='sleep 1.5; echo loss: 1'",
    r"task.metric={name:loss,regex:'loss: (\S+)'}",
)


@pytest.fixture
def folder(slurm_programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("line")  # a Slurm inside allows for no long name
    yield root
    tool = [sys.executable, str(ROOT / "tests/sandbox/cluster.py"), "--state", str(root / "slurm")]
    subprocess.run([*tool, "down"], check=True)


def headline(folder: Path, *options: str) -> subprocess.Popen[str]:
    argv = [sys.executable, str(ROOT / "benchmarks/headline.py"), str(folder), "--small", *options, *STAND_IN]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen[str], status: int) -> str:
    out, _ = process.communicate(timeout=200)
    assert process.returncode == status, out
    return out


def events(folder: Path, tag: str) -> list[str]:
    journal = folder / "repository/runs" / tag / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True) if journal.exists() else []
    return [json.loads(line)["event"] for line in lines if line.endswith("\n")]


def rows(out: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in out.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines}


@pytest.mark.alone
def test_at_once_and_one_after_another(folder: Path) -> None:
    process = headline(folder, "--searches", "single")
    while "trial.done" not in events(folder, "single"):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert "not complete: the same command goes on" in ended(process, 3)

    images = folder / "images"
    out = ended(headline(folder, "--searches", "at-once,single", "--images", str(images)), 0)
    found = rows(out)
    assert found["trials"][:2] == ["8", "8"]
    assert found["failed"][:2] == found["cancelled or lost, and run again"][:2] == ["0", "0"]
    assert float(found["wall time, s"][2]) > 1.5
    assert float(found["GPU-seconds by sacct"][0]) > 0
    assert events(folder, "single").count("run.resumed") == 1
    assert {path.name for path in images.iterdir()} == {"headline-curves.png", "headline-phases.png"}
    assert rows(ended(headline(folder, "--report-only"), 0)) == found
