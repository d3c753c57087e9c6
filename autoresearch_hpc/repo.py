"""Candidates as git commits. The only importer of GitPython.

Works on objects and on refs of its own, through a private index: the user's checkout, index and current branch are
never touched, and any number of controllers may work in one repository.

    refs/heads/autoresearch/<tag>               the incumbent
    refs/autoresearch/<tag>/<candidate>         every candidate, so that nothing is collected as garbage
"""

import contextlib
import errno
import functools
import io
import logging
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import git

from autoresearch_hpc.errors import STORAGE_ERRORS, RepoError, StorageError
from autoresearch_hpc.files import storing

_log = logging.getLogger(__name__)

_NAME = "autoresearch_hpc"
_DURABLE = ("-c", "core.fsync=committed,reference")  # as the journal is; a git before 2.36 does not know it
_STALE_LOCK_S = 10.0  # git itself holds a ref's lock for milliseconds
_LOCK_POLL_S = 0.2
# What git says without the system's reason; a lack of rights would have shown before, when it made the file.
_CANNOT_WRITE = re.compile(r"couldn't write|unable to write new index file|Out of diskspace|couldn't close")
_CACHED = 64  # answers that are kept: candidates of a round mostly have one parent
_NO_COMMIT = "0" * 40


class Repo:
    """The user's repository, as far as a run may see it.

    Raises RepoError where path is not in a git repository, or has no commit yet.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._repo = git.Repo(path, search_parent_directories=True)
        except (git.InvalidGitRepositoryError, git.NoSuchPathError):
            raise RepoError(
                f"{path.resolve()} is not in a git repository", "git init and commit, or set repo="
            ) from None
        if self._repo.bare:
            raise RepoError(f"{path.resolve()} is a bare repository", "set repo= to a checkout")
        self.root = Path(str(self._repo.working_tree_dir))
        # Without this, reading commands such as `git diff` may refresh, that is rewrite, the user's index.
        self._env = {"GIT_OPTIONAL_LOCKS": "0", **self._identity()}
        self._read = functools.lru_cache(maxsize=_CACHED)(self._read_blob)
        self._modes = functools.lru_cache(maxsize=_CACHED)(self._modes_in)
        try:
            self.head = self._git("rev-parse", "--verify", "HEAD^{commit}")
        except git.GitCommandError:
            raise RepoError(f"{self.root} has no commit yet", "commit the script first") from None

    def _identity(self) -> dict[str, str]:
        """Author and committer, for users who have not told git who they are."""
        try:
            self._repo.git.var("GIT_COMMITTER_IDENT")
            return {}
        except git.GitCommandError:
            name, email = _NAME, f"{_NAME}@localhost"
            return {
                f"GIT_{who}_{key}": value
                for who in ("AUTHOR", "COMMITTER")
                for key, value in (("NAME", name), ("EMAIL", email))
            }

    def _git(self, *args: str, env: Mapping[str, str] | None = None, strip: bool = True) -> str:
        text = self._bytes(*args, env=env).decode("utf-8", errors="surrogateescape")
        return text.removesuffix("\n") if strip else text

    def _bytes(self, *args: str, env: Mapping[str, str] | None = None) -> bytes:
        """What git prints. Raises StorageError where the filesystem is to blame, GitCommandError otherwise."""
        command, variables = ["git", *_DURABLE, *args], {**self._env, **(env or {})}
        try:
            output = self._repo.git.execute(
                command, env=variables, stdout_as_string=False, strip_newline_in_stdout=False
            )
        except git.GitCommandError as error:
            number = _storage_error(str(error.stderr))
            if number is None:
                raise
            raise StorageError(self._repo.common_dir, number) from error
        assert isinstance(output, bytes)
        return output

    def _write(self, *args: str, env: Mapping[str, str] | None = None) -> str:
        """Run git to write something. Raises RepoError with git's own words."""
        try:
            return self._git(*args, env=env)
        except git.GitCommandError as error:
            said = " ".join(str(error.stderr).partition("stderr: ")[2].strip(" '").split()) or f"status {error.status}"
            raise RepoError(f"git {args[0]} failed in {self.root}: {said}", "see git status there") from error

    def _update_ref(self, ref: str, *args: str) -> None:
        """Run `git update-ref`, past a lock that a killed git has left.

        Only this run's controller moves its refs, and there is one: a lock that stays for so long has no owner.
        """
        seen: tuple[int, int] | None = None
        deadline = 0.0
        while True:
            try:
                self._git("update-ref", *args)
                return
            except git.GitCommandError as error:
                lock = _lock_of(ref, str(error.stderr))
                if lock is None:
                    self._write("update-ref", *args)  # once more, or git's own words
                    return
            with contextlib.suppress(FileNotFoundError):
                status = lock.stat()
                if (status.st_ino, status.st_mtime_ns) != seen:
                    seen, deadline = (status.st_ino, status.st_mtime_ns), time.monotonic() + _STALE_LOCK_S
                elif time.monotonic() > deadline:
                    _log.warning("removing %s, which a git that was killed has left", lock)
                    lock.unlink()
            time.sleep(_LOCK_POLL_S)

    def dirty(self, paths: Sequence[str]) -> list[str]:
        """Those of the paths whose content on disk is not HEAD's, staged, unstaged or untracked."""
        lines = self._git("status", "--porcelain", "-z", "--untracked-files=all", "--", *paths).split("\0")
        return [line[3:] for line in lines if line]

    def snapshot(self, paths: Sequence[str]) -> str:
        """A commit on HEAD that holds the paths as they are on disk. HEAD itself where nothing differs."""
        changed = self.dirty(paths)
        if not changed:
            return self.head
        files: dict[str, str | None] = {}
        for name in changed:
            path = self.root / name
            files[name] = path.read_bytes().decode("utf-8") if path.is_file() else None
        return self.commit(self.head, files, "uncommitted changes at the start of the run")

    def read(self, commit: str, path: str) -> str:
        """A file's text in a commit (its full hash: what it holds never changes).

        Raises RepoError where it is not there or not text.
        """
        return self._read(commit, path)

    def _read_blob(self, commit: str, path: str) -> str:
        try:
            data = self._bytes("cat-file", "blob", f"{commit}:{path}")
            return data.decode("utf-8")
        except git.GitCommandError:
            raise RepoError(
                f"{path} is not in commit {commit[:7]} of {self.root}", "commit it, or correct task.script"
            ) from None
        except UnicodeDecodeError:
            raise RepoError(
                f"{path} in commit {commit[:7]} is not UTF-8 text", "remove it from task.editable"
            ) from None

    def merge(self, base: str, ours: str, theirs: str) -> str | None:
        """A text with the changes of both from base; None where they conflict."""
        scratch = Path(tempfile.gettempdir())
        with storing(scratch), tempfile.TemporaryDirectory(prefix="autoresearch-merge-") as folder:
            paths = [Path(folder) / name for name in ("ours", "base", "theirs")]
            for path, text in zip(paths, (ours, base, theirs), strict=True):
                path.write_bytes(text.encode("utf-8"))
            try:
                return self._bytes("merge-file", "-p", "-q", *map(str, paths)).decode("utf-8")
            except git.GitCommandError as error:
                if error.status in range(1, 128):  # so many conflicts
                    return None
                said = " ".join(str(error.stderr).split())
                raise RepoError(
                    f"git merge-file failed: {said}", "is git 2.30 or newer, and the text no binary?"
                ) from error

    def working_text(self, path: str) -> str | None:
        """A file of the user's checkout as it is now; None where there is none, or no text."""
        try:
            return (self.root / path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def commit(self, parent: str, files: Mapping[str, str | None], message: str) -> str:
        """A new commit on parent with these files replaced (None: removed); no ref points to it yet."""
        for path in files:
            _check_path(path)
        scratch = Path(tempfile.gettempdir())
        with storing(scratch), tempfile.TemporaryDirectory(prefix="autoresearch-index-") as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            self._write("read-tree", parent, env=index)
            modes = self._modes(parent, tuple(files))
            for path, text in files.items():
                if text is None:
                    self._write("update-index", "--force-remove", "--", path, env=index)
                    continue
                content = Path(folder) / "content"
                content.write_bytes(text.encode("utf-8"))  # as bytes: line endings are the author's
                blob = self._write("hash-object", "-w", "--no-filters", str(content))
                mode = modes.get(path, "100644")
                self._write("update-index", "--add", "--cacheinfo", f"{mode},{blob},{path}", env=index)
            tree = self._write("write-tree", env=index)
        return self._write("commit-tree", tree, "-p", parent, "-m", message)

    def _modes_in(self, commit: str, paths: tuple[str, ...]) -> dict[str, str]:
        if not paths:
            return {}
        lines = self._git("ls-tree", "-z", commit, "--", *paths).split("\0")
        return {line.split("\t", 1)[1]: line.split(" ", 1)[0] for line in lines if line}

    def keep(self, tag: str, candidate: str, commit: str) -> None:
        """Point the candidate's own ref to its commit."""
        ref = f"refs/autoresearch/{tag}/{candidate}"
        self._update_ref(ref, ref, commit)

    def kept(self, tag: str, candidate: str) -> str | None:
        """The commit that the candidate's own ref points to."""
        return self._resolve(f"refs/autoresearch/{tag}/{candidate}")

    def branch(self, tag: str) -> str | None:
        """The commit of the run's branch."""
        return self._resolve(f"refs/heads/autoresearch/{tag}")

    def advance(self, tag: str, commit: str) -> None:
        """Move the run's branch to commit, making it where there is none.

        Raises RepoError where the user has checked the branch out: moving it would change their checkout.
        """
        ref = f"refs/heads/autoresearch/{tag}"
        if ref in self._checked_out():
            raise RepoError(f"the branch autoresearch/{tag} is checked out", "switch to another branch")
        self._update_ref(ref, "-m", "autoresearch_hpc: keep", ref, commit, self._resolve(ref) or _NO_COMMIT)

    def _checked_out(self) -> set[str]:
        lines = self._git("worktree", "list", "--porcelain").splitlines()
        return {line.split(" ", 1)[1] for line in lines if line.startswith("branch ")}

    def _resolve(self, ref: str) -> str | None:
        try:
            return self._git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
        except git.GitCommandError:
            return None

    def diff(self, parent: str, commit: str) -> tuple[str, int]:
        """The patch from parent to commit, and how many lines it adds and removes."""
        told = self._git("diff", "--numstat", "--patch", "--no-color", "--no-ext-diff", parent, commit, strip=False)
        numbers, _, patch = told.partition("\n\n")
        counts = [line.split("\t")[:2] for line in numbers.splitlines()]
        return patch, sum(int(n) for pair in counts for n in pair if n.isdigit())

    def require(self, commit: str, paths: Sequence[str]) -> None:
        """Raise RepoError naming the first of the plain paths that the commit lacks."""
        for path in paths:
            if not set(path) & set("*?[:") and not self._git("ls-tree", commit, "--", path):
                raise RepoError(
                    f"{path} is not in commit {commit[:7]} of {self.root}", "commit it, or correct task.export"
                )

    def export(self, commit: str, paths: Sequence[str], target: Path) -> None:
        """Write the commit's files at paths (pathspecs; "." is all) into target, which appears whole or not at all."""
        if target.is_dir():
            return
        try:
            archive = self._bytes("archive", "--format=tar", commit, "--", *paths)
        except git.GitCommandError:
            self.require(commit, paths)
            raise
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with storing(target):
            partial.mkdir(parents=True)
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                tar.extractall(partial, filter="data")
            partial.replace(target)


def _storage_error(said: str) -> int | None:
    """The errno of a failure that git tells in words (English ones: GitPython sets the locale)."""
    told = next((number for number in STORAGE_ERRORS if os.strerror(number) in said), None)
    return told or (errno.ENOSPC if _CANNOT_WRITE.search(said) else None)


def _lock_of(ref: str, said: str) -> Path | None:
    """The ref's lock file, where git says that it is there already."""
    found = re.search(r"Unable to create '(.+)': File exists", said)
    return Path(found[1]) if found and found[1].endswith(f"/{ref}.lock") else None


def _check_path(path: str) -> None:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or ".git" in pure.parts or path != str(pure):
        raise RepoError(f"a candidate may not write to {path!r}", "use a plain path inside the repository")
