"""What compilers made in a run's baseline, for its later trials to start from: a minute of compilation less on a GPU.

    <run>/compiled/<key>.tar    `root`, where it was made; caches of inductor and Triton in trainer/ and scoring/

A trial's caches are its own, or one could leave something there for another. So a trial starts with a copy of what the
baseline left. That is the user's own script, which nobody has edited; no other trial's caches are kept.

Caches remember the directory that they were made in, in pickles and binaries too, and a later trial may not reach that
any more. So a copy has its own directory in that one's place, byte for byte: names of trials' directories are equally
long (`scratch`), as those of the places in them are. Where they are not, it is compiled anew.
"""

import hashlib
import io
import logging
import os
import tarfile
import uuid
from pathlib import Path

from autoresearch_hpc.records import TrialSpec
from autoresearch_hpc.trial.facts import torch_version
from autoresearch_hpc.trial.integrity import harness_sha256

_log = logging.getLogger(__name__)
_PLACES = ("trainer", "scoring")
_ROOT = "root"
_MAX_BYTES = 1 << 30


def store(spec: TrialSpec, gpu_name: str | None) -> Path | None:
    """Where this kind of node finds and leaves them; None where nothing worth keeping is compiled."""
    if spec.inbox is None or spec.device == "cpu" or gpu_name is None:
        return None
    parts = (harness_sha256(), torch_version(), gpu_name)
    return Path(spec.inbox).parent / "compiled" / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.tar"


def unpack(archive: Path | None, root: Path, place: str) -> bool:
    """Fill the caches of a place below root. False where there is nothing to fill them with: they stay empty."""
    if archive is None or not archive.is_file():
        return False
    try:
        with tarfile.open(archive) as tar:
            made_in = tar.extractfile(_ROOT)
            _extract(tar, root, made_in.read() if made_in else b"", within=f"{place}/")
        return True
    except (OSError, ValueError, KeyError, tarfile.TarError) as error:
        _log.warning("compiling anew: %s: %s", archive, error)
        return False


def copy(source: Path, target: Path) -> None:
    """Give one place's caches to another. What wrote them is not trusted: only plain files, of a bounded size."""
    packed = io.BytesIO()
    try:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
            tar.add(source / "caches", arcname="caches", filter=_Bounded())
        packed.seek(0)
        with tarfile.open(fileobj=packed) as tar:
            _extract(tar, target, os.fsencode(source))
    except (OSError, ValueError, tarfile.TarError) as error:
        _log.warning("compiled twice: %s", error)


def _extract(tar: tarfile.TarFile, target: Path, made_in: bytes, within: str = "") -> None:
    """Unpack what is `within` below target, which takes the place of the directory `made_in` in every file.

    Raises ValueError where their names differ in length. Some thousand small files, which a trial waits for: TarFile's
    own extraction takes twice as long.
    """
    here = os.fsencode(target)
    if len(here) != len(made_in):
        raise ValueError(f"made in {os.fsdecode(made_in)}, whose name is not as long as that of {target}")
    for member in tar:
        if not member.name.startswith(within) or member.name == _ROOT:
            continue
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise ValueError(f"{member.name} lies elsewhere")
        path = f"{target}/{member.name}"
        if member.isdir():
            Path(path).mkdir(0o700, parents=True, exist_ok=True)
        elif file := tar.extractfile(member):
            with open(path, "xb", opener=_executable if member.mode & 0o100 else _private) as out:
                out.write(file.read().replace(made_in, here))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _executable(path: str, flags: int) -> int:
    return os.open(path, flags, 0o700)


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
        with tarfile.open(tmp, "w", format=tarfile.GNU_FORMAT) as tar:
            name = os.fsencode(root)
            made_in = tarfile.TarInfo(_ROOT)
            made_in.size = len(name)
            tar.addfile(made_in, io.BytesIO(name))
            for place in _PLACES:
                tar.add(root / place / "caches", arcname=f"{place}/caches", filter=_Bounded())
        tmp.replace(archive)
    except OSError as error:
        _log.warning("what was compiled is not kept: %s", error)
    finally:
        tmp.unlink(missing_ok=True)
