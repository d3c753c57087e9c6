"""The README's first command, and the package as a wheel."""

import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from toy import Command

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("no_slurm")


def git(repository: Path, *words: str) -> str:
    who = ["-c", "user.name=T", "-c", "user.email=t@localhost"]
    done = subprocess.run(["git", *who, *words], cwd=repository, capture_output=True, text=True, check=True)
    return done.stdout


def test_quickstart_improves_in_time(tmp_path: Path) -> None:
    """What `make quickstart` runs once everything is installed: real data, real training, real evaluation."""
    repository = tmp_path / "research"
    subprocess.run([sys.executable, "-m", "autoresearch_hpc.init", str(repository)], check=True, capture_output=True)
    begun = time.monotonic()
    words = [sys.executable, "-m", "autoresearch_hpc", "+round=quickstart", "tag=quickstart"]
    out, err = Command(words, repository, os.environ, tmp_path / "output").finish(timeout_s=300)
    wall_s = time.monotonic() - begun

    rows = [line.split("\t") for line in (repository / "runs/quickstart/results.tsv").read_text().splitlines()[1:]]
    assert len(rows) == 13
    scores = [float(row[1]) for row in rows if row[3] != "crash"]
    assert len(scores) >= 11, rows
    kept = [row for row in rows if row[3] == "keep"]
    baseline, best = float(rows[0][1]), float(kept[-1][1])
    print(f"quickstart: {wall_s:.0f} s, val_bpb {baseline:.6f} -> {best:.6f}")
    assert best < baseline - 0.02
    branch = git(repository, "rev-parse", "autoresearch/quickstart").strip()
    assert branch.startswith(kept[-1][0])
    assert "runs/quickstart/progress.png" in out
    assert (repository / "runs/quickstart/progress.png").stat().st_size > 10_000
    assert git(repository, "status", "--porcelain") == ""
    assert "Traceback" not in err
    assert wall_s <= 150


def test_wheel_brings_all_that_a_research_repository_needs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")

    # A virtual environment that has this one's dependencies, but not its editable installation of the package.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    words = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(words, check=True, capture_output=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    dependencies = tmp_path / "dependencies"
    dependencies.mkdir()
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if "autoresearch" not in package.name and package.suffix != ".pth":
            (dependencies / package.name).symlink_to(package)
    (site / "dependencies.pth").write_text(f"{dependencies}\n")

    def run(*words: str, cwd: Path, code: int = 0) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([str(python), *words], cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    found = run("-c", "import autoresearch_hpc; print(autoresearch_hpc.__file__)", cwd=tmp_path).strip()
    assert Path(found).is_relative_to(site)

    repository = tmp_path / "my research"
    repository.mkdir()
    (repository / "program.md").write_text("my own words\n")
    out = run("-m", "autoresearch_hpc.init", str(repository), cwd=tmp_path)
    assert str(repository / "train.py") in out
    assert str(repository / "program.md") not in out
    assert (repository / "program.md").read_text() == "my own words\n"
    assert (repository / "train.py").read_bytes() == (ROOT / "train.py").read_bytes()
    assert "train.py" in git(repository, "ls-tree", "-r", "--name-only", "HEAD").splitlines()
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    run("-m", "autoresearch_hpc.init", str(repository), cwd=tmp_path)
    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before

    assert "trials        14 in 4 rounds" in run("-m", "autoresearch_hpc.plan", "+round=quickstart", cwd=repository)
    assert "mine" in run("-m", "autoresearch_hpc.plan", "+round=mine", cwd=repository)
