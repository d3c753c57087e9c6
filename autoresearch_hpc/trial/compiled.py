"""What compilers made in a run's baseline, for its later trials to start from: a minute of compilation less on a GPU.

    <run>/compiled/<key>.tar    `root`, where it was made; caches of inductor and Triton in trainer/ and scoring/

A trial's caches are its own, or one could leave something there for another. So a trial starts with a copy of what the
baseline left, its witness with a copy of what scoring left there. The baseline is the user's own script, which nobody
has edited; no other trial's caches are kept.

Caches remember the directory that they were made in, in pickles and binaries too, and a later trial may not reach that
any more. So a copy has its own directory in that one's place, byte for byte: names of trials' directories are equally
long (`scratch`), as those of the places in them are. Where they are not, it is compiled anew.
"""

import contextlib
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


def unpack(archive: Path | None, root: Path, place: str, of: str = "") -> bool:
    """Fill the caches of a place below root with those of the same place, or `of` another.

    False where there is nothing to fill them with: they stay empty. Some thousand small files, which a trial waits
    for: TarFile's own extraction takes twice as long.
    """
    if archive is None or not archive.is_file():
        return False
    source, target = of or place, root / place
    try:
        with tarfile.open(archive) as tar:
            told = tar.extractfile(_ROOT)
            made_in, here = told.read() if told else b"", os.fsencode(root)
            if len(f"/{source}") + len(made_in) != len(os.fsencode(target)):
                raise ValueError(f"made in {os.fsdecode(made_in)}, whose name is not as long as that of {root}")
            for member in tar:
                folder, _, name = member.name.partition("/")
                if folder != source:
                    continue
                if ".." in name.split("/"):
                    raise ValueError(f"{member.name} lies elsewhere")
                if member.isdir():
                    (target / name).mkdir(0o700, parents=True, exist_ok=True)
                elif file := tar.extractfile(member):
                    content = file.read().replace(made_in + os.fsencode(f"/{source}"), os.fsencode(target))
                    opener = _executable if member.mode & 0o100 else _private
                    with contextlib.suppress(FileExistsError), open(f"{target}/{name}", "xb", opener=opener) as out:
                        out.write(content.replace(made_in, here))
        return True
    except (OSError, ValueError, KeyError, tarfile.TarError) as error:
        _log.warning("compiling anew: %s: %s", archive, error)
        return False


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
