"""What must be the same after a trial as before it: the candidate's files, the code that measures, the data."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoresearch_hpc.dataset import MANIFEST, Dataset
from autoresearch_hpc.files import sha256_file
from autoresearch_hpc.records import TrialSpec

_PACKAGE = Path(__file__).resolve().parents[1]
_MEASURES = (
    "dataset.py",
    "environment.py",
    "errors.py",
    "files.py",
    "layout.py",
    "leftovers.py",
    "quoting.py",
    "records.py",
    "sandbox.py",
    "harness",
    "kernels",
    "trial",
)


def harness_sha256() -> str:
    """A hash of the code that measures: of every result it says by which rules it was earned."""
    files = sorted(path for part in _MEASURES for path in [_PACKAGE / part, *(_PACKAGE / part).glob("*.py")])
    return hashlib.sha256("".join(sha256_file(f) for f in files if f.is_file()).encode()).hexdigest()


def protected(spec: TrialSpec) -> list[Path]:
    """What no foreign process may read, even where it lies among software: data, and other trials."""
    run = Path(spec.inbox).parent if spec.inbox else Path(spec.trial_dir)
    return [run, *([Path(spec.data_dir)] if spec.data_dir else [])]


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What tells a file from another without reading it."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int


class Watched:
    """The state before the trial; `changed` compares. Files are hashed, data is told by its stamps."""

    def __init__(self, spec: TrialSpec) -> None:
        self._src = {Path(spec.src) / name: sha for name, sha in spec.src_sha256.items()}
        self._harness = spec.harness_sha256 or harness_sha256()  # the worker has just found the former to be so
        self._data = _stamps(Path(spec.data_dir)) if spec.data_dir else {}

    def changed(self) -> str | None:
        """What is not as it was, in words; None where all is."""
        for path, sha in self._src.items():
            if not path.is_file() or sha256_file(path) != sha:
                return f"{path.name} was changed while the trial ran"
        if harness_sha256() != self._harness:
            return "the harness was changed while the trial ran"
        for path, stamp in self._data.items():
            if _stamp(path) != stamp:
                return f"the data's {path.name} was changed while the trial ran"
        return None


def _stamps(data_dir: Path) -> Mapping[Path, _Stamp | None]:
    manifest = Dataset(data_dir).manifest
    files = (manifest.tokenizer, manifest.token_bytes, *manifest.train, *manifest.val)
    return {data_dir / name: _stamp(data_dir / name) for name in (MANIFEST, *(file.name for file in files))}


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return _Stamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
