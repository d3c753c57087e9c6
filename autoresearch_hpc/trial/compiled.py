"""What compilers made in a run's baseline, for its later trials to start from: a minute of compilation less on a GPU.

    <run>/compiled/<key>.tar    trainer/ and scored/, each with the caches of inductor and Triton

A trial's caches are its own, or one could leave something there for another. So a trial starts with a copy of what the
baseline left. That is the user's own script, which nobody has edited; no other trial's caches are kept.
"""

import hashlib
import importlib.metadata
import io
import logging
import tarfile
import uuid
from pathlib import Path

from autoresearch_hpc.records import TrialSpec
from autoresearch_hpc.trial.integrity import harness_sha256

_log = logging.getLogger(__name__)
_PLACES = ("trainer", "scored")
_MAX_BYTES = 1 << 30


def store(spec: TrialSpec, gpu_name: str | None) -> Path | None:
    """Where this kind of node finds and leaves them; None where nothing worth keeping is compiled."""
    if spec.inbox is None or spec.device == "cpu" or gpu_name is None:
        return None
    parts = (harness_sha256(), importlib.metadata.version("torch"), gpu_name)
    return Path(spec.inbox).parent / "compiled" / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.tar"


def unpack(archive: Path | None, root: Path) -> None:
    """Fill the caches of the places below root. Without an archive they stay empty."""
    if archive is None or not archive.is_file():
        return
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(root, filter="data")
    except (OSError, tarfile.TarError) as error:
        _log.warning("compiling anew: %s: %s", archive, error)
        return


def copy(source: Path, target: Path) -> None:
    """Give one place's caches to another. What wrote them is not trusted: only plain files, of a bounded size."""
    packed = io.BytesIO()
    try:
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(source / "caches", arcname="caches", filter=_Bounded())
        packed.seek(0)
        with tarfile.open(fileobj=packed) as tar:
            tar.extractall(target, filter="data")
    except (OSError, tarfile.TarError) as error:
        _log.warning("compiled twice: %s", error)


class _Bounded:
    """Lets folders and plain files pass, of _MAX_BYTES together."""

    def __init__(self) -> None:
        self._left = _MAX_BYTES

    def __call__(self, info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        self._left -= info.size
        return info if (info.isfile() or info.isdir()) and self._left >= 0 else None


def keep(spec: TrialSpec, archive: Path | None, root: Path) -> None:
    """Publish the caches of a baseline, once."""
    baseline = spec.round == 0 and spec.candidate.endswith("-c00")
    if archive is None or not baseline or archive.exists():
        return
    tmp = archive.with_name(f".{archive.name}.{uuid.uuid4().hex}.tmp")
    try:
        archive.parent.mkdir(exist_ok=True)
        with tarfile.open(tmp, "w") as tar:
            for place in _PLACES:
                tar.add(root / place / "caches", arcname=f"{place}/caches", filter=_Bounded())
        tmp.replace(archive)
    except OSError as error:
        _log.warning("what was compiled is not kept: %s", error)
    finally:
        tmp.unlink(missing_ok=True)
