"""Candidates as commits, in real repositories with hostile names."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from autoresearch_hpc.errors import RepoError
from autoresearch_hpc.repo import Repo


def git(root: Path, *args: str) -> str:
    return subprocess.run(["git", *args], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "a repo with 'quotes' and ünicode"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    git(root, "config", "user.name", "A User")
    git(root, "config", "user.email", "user@example.org")
    (root / "train.py").write_text("LR = 0.1\n")
    (root / "my data").mkdir()
    (root / "my data" / "ä.txt").write_text("x\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "start")
    return root


def fingerprint(root: Path) -> dict[str, str]:
    """The user's checkout, index and HEAD, byte by byte."""
    files = [p for p in root.rglob("*") if p.is_file() and ".git" not in p.relative_to(root).parts]
    files += [root / ".git" / "index", root / ".git" / "HEAD", root / ".git" / "refs" / "heads" / "main"]
    return {str(p): f"{hashlib.sha256(p.read_bytes()).hexdigest()} {p.stat().st_mtime_ns}" for p in files}


def test_whole_life_of_a_candidate_leaves_the_checkout_untouched(root: Path, tmp_path: Path) -> None:
    (root / "train.py").touch()  # makes the index stale: a careless `git status` would rewrite it
    before = fingerprint(root)
    repo = Repo(root)
    commit = repo.commit(repo.head, {"train.py": "LR = 0.2\n", "new dir/ö.py": "x = 1\r\n"}, "a 'candidate'")
    repo.keep("my-tag", "r00-c00", commit)
    repo.advance("my-tag", commit)
    patch, lines = repo.diff(repo.head, commit)
    repo.export(commit, ["."], tmp_path / "out put")
    assert repo.dirty(["train.py"]) == []
    assert fingerprint(root) == before

    assert git(root, "rev-parse", "autoresearch/my-tag") == commit == repo.branch("my-tag")
    assert git(root, "rev-parse", f"{commit}^") == repo.head
    assert repo.kept("my-tag", "r00-c00") == commit
    assert repo.kept("my-tag", "r00-c01") is None
    assert "+LR = 0.2" in patch
    assert lines == 3
    assert (tmp_path / "out put" / "train.py").read_text() == "LR = 0.2\n"
    assert (tmp_path / "out put" / "new dir" / "ö.py").read_bytes() == b"x = 1\r\n"
    assert (tmp_path / "out put" / "my data" / "ä.txt").read_text() == "x\n"


def test_export_takes_only_the_named_paths(root: Path, tmp_path: Path) -> None:
    Repo(root).export("HEAD", ["train.py"], tmp_path / "src")
    assert [p.name for p in (tmp_path / "src").iterdir()] == ["train.py"]


def test_an_executable_stays_executable(root: Path, tmp_path: Path) -> None:
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "script")
    repo = Repo(root)
    repo.export(repo.commit(repo.head, {"run.sh": "#!/bin/sh\necho\n"}, "edit"), ["."], tmp_path / "src")
    assert (tmp_path / "src" / "run.sh").stat().st_mode & 0o100


def test_dirty_and_snapshot(root: Path) -> None:
    (root / "train.py").write_text("LR = 0.3\n")
    before = fingerprint(root)
    repo = Repo(root)
    assert repo.dirty(["train.py"]) == ["train.py"]
    assert repo.dirty(["my data"]) == []
    commit = repo.snapshot(["train.py"])
    assert repo.read(commit, "train.py") == "LR = 0.3\n"
    assert repo.read(repo.head, "train.py") == "LR = 0.1\n"
    assert fingerprint(root) == before
    assert Repo(root).snapshot(["my data"]) == repo.head


def test_the_branch_can_move_to_a_commit_that_is_no_descendant(root: Path) -> None:
    repo = Repo(root)
    one = repo.commit(repo.head, {"train.py": "LR = 1.0\n"}, "one")
    two = repo.commit(repo.head, {"train.py": "LR = 2.0\n"}, "two")
    repo.advance("t", one)
    repo.advance("t", two)
    assert repo.branch("t") == two


def test_a_checked_out_branch_is_not_moved(root: Path) -> None:
    repo = Repo(root)
    repo.advance("t", repo.head)
    git(root, "switch", "-q", "autoresearch/t")
    with pytest.raises(RepoError, match="checked out; switch"):
        repo.advance("t", repo.commit(repo.head, {"train.py": "x = 1\n"}, "edit"))


def test_works_for_a_user_without_a_name(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    git(root, "config", "--unset", "user.name")
    git(root, "config", "--unset", "user.email")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("EMAIL", "")  # else git makes an address up from the host's name
    git(root, "config", "user.useConfigOnly", "true")
    repo = Repo(root)
    commit = repo.commit(repo.head, {"train.py": "x = 1\n"}, "edit")
    assert git(root, "log", "-1", "--format=%an", commit) == "autoresearch_hpc"


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", ".git/config", "a//b", "./a"])
def test_paths_outside_are_refused(root: Path, path: str) -> None:
    repo = Repo(root)
    with pytest.raises(RepoError, match="may not write"):
        repo.commit(repo.head, {path: ""}, "edit")


def test_no_repository_and_no_commit(tmp_path: Path) -> None:
    with pytest.raises(RepoError, match="not in a git repository; git init"):
        Repo(tmp_path)
    git(tmp_path, "init", "-q")
    with pytest.raises(RepoError, match="no commit yet"):
        Repo(tmp_path)


def test_a_missing_file_names_the_commit(root: Path) -> None:
    repo = Repo(root)
    with pytest.raises(RepoError, match=rf"nope.py is not in commit {repo.head[:7]}"):
        repo.read(repo.head, "nope.py")


BASE = "a = 1\n\n\ndef f():\n    return 'ü'\n\n\nb = 2\n"


def test_changes_of_two_texts_are_merged(root: Path, tmp_path: Path) -> None:
    git(root, "config", "merge.conflictStyle", "diff3")
    before = fingerprint(root)
    repo = Repo(root)
    ours, theirs = BASE.replace("a = 1", "a = 3"), BASE.replace("b = 2\n", "b = 2\nc = 'é'\n")
    assert repo.merge(BASE, ours, theirs) == BASE.replace("a = 1", "a = 3") + "c = 'é'\n"
    assert repo.merge(BASE, ours, BASE) == ours
    assert repo.merge(BASE, ours, ours) == ours, "the same change on both sides is one"
    assert repo.merge(BASE, ours, BASE.replace("a = 1", "a = 4")) is None
    assert repo.merge(BASE, ours, BASE.replace("a = 1", "a = 4").replace("b = 2", "b = 4")) is None
    windows = [text.replace("\n", "\r\n") for text in (BASE, ours, theirs)]
    assert repo.merge(*windows) == repo.merge(BASE, ours, theirs).replace("\n", "\r\n")  # type: ignore[union-attr]
    assert repo.merge("a\n\n\nb", "x\n\n\nb", "a\n\n\nb\nc") == "x\n\n\nb\nc", "no line end is added"
    assert fingerprint(root) == before
    with pytest.raises(RepoError, match="merge-file failed"):
        repo.merge("a\0", "b\0", "c\0")
