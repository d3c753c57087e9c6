"""Small real repositories."""

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path


def git(root: Path, *args: str) -> str:
    return subprocess.run(["git", *args], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def make_repo(root: Path, files: Mapping[str, str]) -> Path:
    """A repository with one commit."""
    root.mkdir(parents=True)
    git(root, "init", "-q", "-b", "main")
    git(root, "config", "user.name", "A User")
    git(root, "config", "user.email", "user@example.org")
    write(root, files)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "start", "--allow-empty")
    return root


def write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def fingerprint(root: Path) -> dict[str, str]:
    """Checkout, index, HEAD and every ref, byte by byte. Loose objects do not count: nobody sees them."""
    found = {}
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root).parts
        if path.is_file() and inside[:2] != (".git", "objects"):
            found[str(path)] = f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
    return found
