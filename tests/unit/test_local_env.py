"""sbatch/local_env.sh: an environment packed once, and unpacked once a node however many jobs begin there at once."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "sbatch" / "local_env.sh"
TELL = "import json, sys; print([sys.prefix, sys.base_prefix, json.__file__])"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a virtual environment with one module of its own."""
    root = tmp_path_factory.mktemp("it's shared")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / "venv")], check=True)
    (site,) = root.glob("venv/lib/python*/site-packages")
    (site / "ours.py").write_text("WORD = 'here'\n")
    words = ["bash", str(SCRIPT), "pack", str(root / "venv"), str(root / "env.tar")]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return root / "env.tar"


def job(archive: Path, node: Path, program: str = TELL) -> "subprocess.Popen[str]":
    """What a job does with cluster.setup and cluster.python as the script says."""
    line = f'source "$1" use "$2"; "$AUTORESEARCH_ENV/bin/python" -P -c {program!r}'
    words = ["bash", "-c", line, "job", str(SCRIPT), str(archive)]
    env = {**os.environ, "AUTORESEARCH_LOCAL": str(node)}
    return subprocess.Popen(words, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_sixteen_jobs_at_once_unpack_once_and_use_nothing_of_the_shared_one(archive: Path, tmp_path: Path) -> None:
    program = f"{TELL}; import ours; print(ours.WORD)"
    jobs = [job(archive, tmp_path, program) for _ in range(16)]
    told = [each.communicate(timeout=120) for each in jobs]
    assert [each.returncode for each in jobs] == [0] * 16, told
    assert len(set(told)) == 1
    out, err = told[0]
    assert err == ""
    paths, word = out.splitlines()
    assert word == "here"
    ours = ast.literal_eval(paths)[: 1 if sys.base_prefix == "/usr" else None]  # else Python's own library, too
    assert all(path.startswith(str(tmp_path)) for path in ours)
    (root,) = tmp_path.iterdir()
    assert root.stat().st_mode & 0o777 == 0o700
    (place,) = [path for path in root.iterdir() if path.is_dir()]
    before = place.stat().st_ino
    assert job(archive, tmp_path).communicate(timeout=60) == (f"{paths}\n", "")
    assert place.stat().st_ino == before, "a later job finds it there"


def test_a_new_archive_is_unpacked_beside_the_old_one(archive: Path, tmp_path: Path) -> None:
    copy = tmp_path / "env.tar"
    copy.write_bytes(archive.read_bytes())
    first, _ = job(copy, tmp_path).communicate(timeout=60)
    os.utime(copy, (1, 1))
    second, _ = job(copy, tmp_path).communicate(timeout=60)
    assert first
    assert second
    assert first != second
    assert all(Path(path).exists() for path in (*ast.literal_eval(first), *ast.literal_eval(second)))


@pytest.mark.parametrize("harm", ["no archive", "no archive at all", "somebody else's folder", "cut off"])
def test_a_job_that_cannot_have_it_ends(archive: Path, tmp_path: Path, harm: str) -> None:
    broken, node = tmp_path / "env.tar", tmp_path / "node"
    node.mkdir()
    if harm == "no archive":
        broken.write_text("no tar")
    elif harm == "cut off":
        broken.write_bytes(archive.read_bytes()[:5_000_000])
    elif harm == "somebody else's folder":
        broken.write_bytes(archive.read_bytes())
        (tmp_path / "theirs").mkdir()
        (node / f"autoresearch-env-{os.getuid()}").symlink_to(tmp_path / "theirs")
    process = job(broken, node)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == ""
    assert f"local_env: {broken} cannot be used on" in err
