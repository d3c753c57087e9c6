"""The command line: exit codes, one-line errors, and the sbatch file around it."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from autoresearch_hpc.dataset import Dataset

REPO = Path(__file__).parents[2]
SMALL = ["corpus.vocab_size=300", "corpus.seq_len=32"]


def _run(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autoresearch_hpc.prepare", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "my 'work' ü"
    folder.mkdir()
    (folder / "some text.txt").write_text("".join(f"line {i} of 'some' tëxt\n" for i in range(9000)), encoding="utf-8")
    return folder


def test_prepare_verify_damage(here: Path) -> None:
    files = ["corpus=files", "corpus.files=['some text.txt']", *SMALL]
    made = _run(here, *files)
    assert made.returncode == 0, made.stderr
    root = here / "data" / "files-v300-t32"
    sha = Dataset(root).manifest.sha256
    assert made.stdout.startswith("data/files-v300-t32 is complete: ")
    assert sha[:12] in made.stdout
    assert "encode train" in made.stderr, "plain lines where there is no terminal"
    assert "\x1b" not in made.stderr

    assert _run(here, *files, "--quiet").stderr == "", "nothing is left to do"
    checked = _run(here, "--verify", "corpus=files", *SMALL)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "is intact" in checked.stdout

    data = bytearray((root / "val-00000.bin").read_bytes())
    data[5] ^= 1
    (root / "val-00000.bin").write_bytes(data)
    damaged = _run(here, "corpus=files", *SMALL, "--verify")
    assert damaged.returncode == 2
    assert damaged.stderr.startswith("autoresearch_hpc: damaged data: data/files-v300-t32/val-00000.bin fails")
    assert damaged.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["corpus=files"], "corpus.files names no text; give paths or patterns"),
        (["corpus=pyhton"], "did you mean corpus=python?"),
        (["corpus.vocab=300"], "unknown key corpus.vocab; did you mean corpus.vocab_size?"),
        (["corpus.vocab_size=70000"], "corpus.vocab_size=70000; give 260 to 65536"),
        (["--verify"], "no data in data/python-v8192-t2048; prepare it"),
    ],
)
def test_wrong_usage_is_one_line_and_nothing_half_made(here: Path, arguments: list[str], message: str) -> None:
    done = _run(here, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (here / "data").exists()


def test_importing_the_stage_is_cheap() -> None:
    """The controller imports it: nothing heavy may come along."""
    code = "import sys, autoresearch_hpc.data; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "pandas", "matplotlib", "optuna", "tokenizers", "huggingface_hub", "pyarrow"}
    assert "numpy" in done.stdout.split()
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize("found_by", ["AUTORESEARCH_PYTHON", ".venv", "PATH"])
def test_sbatch_file_starts_the_right_python_where_it_was_submitted(here: Path, found_by: str) -> None:
    fake = here / "bin dir" / "python3"
    if found_by == ".venv":
        fake = here / ".venv" / "bin" / "python"
    fake.parent.mkdir(parents=True)
    fake.write_text('#!/bin/sh\npwd\nprintf "%s|" "$@" "$RAYON_NUM_THREADS"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    env = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(here), "SLURM_CPUS_PER_TASK": "8"}
    if found_by == "AUTORESEARCH_PYTHON":
        env["AUTORESEARCH_PYTHON"] = str(fake)
    if found_by == "PATH":
        env["PATH"] = f"{fake.parent}:{env['PATH']}"
    script = REPO / "sbatch" / "prepare.sbatch"
    done = subprocess.run(
        ["bash", str(script), "corpus=files", "corpus.files=[a b]"],
        cwd="/",
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{here}\n-m|autoresearch_hpc.prepare|corpus=files|corpus.files=[a b]|8|"
