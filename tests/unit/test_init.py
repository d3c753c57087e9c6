"""Laying out a research repository: complete, committed, and never over somebody's file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from git_repo import git, make_repo

from autoresearch_hpc import init
from autoresearch_hpc.bundle import bundle_dir
from autoresearch_hpc.entry import compose, load
from autoresearch_hpc.errors import ConfigError

FILES = {
    "train.py", "program.md", ".gitignore", "conf/cluster/mysite.yaml", "conf/round/mine.yaml",
    "sbatch/controller.sbatch", "sbatch/llm_server.sbatch", "sbatch/local_env.sh", "sbatch/prepare.sbatch",
}  # fmt: skip


def names(root: Path, written: list[Path]) -> set[str]:
    return {str(path.relative_to(root)) for path in written}


def test_a_new_repository_is_complete_and_committed(tmp_path: Path) -> None:
    root = tmp_path / "new" / "my 'research' ü"
    assert names(root, init.lay_out(root)) == FILES
    assert git(root, "status", "--porcelain") == ""
    assert set(git(root, "-c", "core.quotepath=off", "ls-files").splitlines()) == FILES
    assert (root / "train.py").read_bytes() == (bundle_dir() / "train.py").read_bytes()


def test_its_own_plan_and_cluster_compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init.lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    loaded = load(compose(["+round=mine", "cluster=mysite"]))
    assert (loaded.plan.name, loaded.plan.k, loaded.cluster.kind.value) == ("mine", 8, "slurm")
    assert loaded.space.knobs


def test_nothing_is_overwritten_and_a_second_time_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("mine")
    (tmp_path / "program.md").symlink_to("nowhere")
    assert names(tmp_path, init.lay_out(tmp_path)) == FILES - {"train.py", "program.md"}
    assert (tmp_path / "train.py").read_text() == "mine"
    assert (tmp_path / "program.md").is_symlink()
    assert "train.py" not in git(tmp_path, "ls-files").splitlines(), "what is not ours is not ours to commit"
    head = git(tmp_path, "rev-parse", "HEAD")
    assert init.lay_out(tmp_path) == []
    assert git(tmp_path, "rev-parse", "HEAD") == head


def test_in_an_existing_repository_the_user_commits(tmp_path: Path) -> None:
    root = make_repo(tmp_path / "repo", {"x.py": "x"})
    head = git(root, "rev-parse", "HEAD")
    assert names(root / "sub dir", init.lay_out(root / "sub dir")) == FILES
    assert git(root, "rev-parse", "HEAD") == head
    assert '?? "sub dir/"' in git(root, "status", "--porcelain")


def test_all_files_there_but_no_repository(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    assert init.lay_out(tmp_path) == []
    assert git(tmp_path, "ls-files") == ""
    assert git(tmp_path, "rev-parse", "HEAD")


def test_a_gitignore_that_hides_everything(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*\n")
    init.lay_out(tmp_path)
    assert "train.py" in git(tmp_path, "ls-files").splitlines()


def test_a_user_whom_git_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    config.write_text("[user]\nuseConfigOnly = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    init.lay_out(tmp_path / "new")
    assert git(tmp_path / "new", "log", "-1", "--format=%an") == "autoresearch_hpc"


def test_a_commit_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    config.write_text("[commit]\ngpgsign = true\n[gpg]\nprogram = /nonexistent\n[user]\nname = a\nemail = b\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    with pytest.raises(ConfigError) as caught:
        init.lay_out(tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert "git could not commit in" in str(caught.value)
    assert str(caught.value).endswith("; commit the files yourself")


@pytest.mark.parametrize("target", ["a file", "a file/below", "/proc/nowhere"])
def test_where_nothing_can_be_written(tmp_path: Path, target: str) -> None:
    (tmp_path / "a file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "autoresearch_hpc.init", target],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr
    assert "choose another DIR" in done.stderr
    assert os.listdir(tmp_path) == ["a file"]  # noqa: PTH208


def test_the_command_says_what_is_next(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoresearch_hpc.init", "lab"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[-2:] == ["next: cd lab", "next: python -m autoresearch_hpc +round=quickstart"]
    assert {line.removeprefix("wrote lab/") for line in lines[:-2]} == FILES
