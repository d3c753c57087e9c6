"""Files that a reader can trust: atomic JSON out, strict JSON in, hashes."""

import contextlib
import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autoresearch_hpc.errors import STORAGE_ERRORS, StorageError


def write_text_atomic(path: Path, text: str) -> None:
    """Publish text: a reader sees no file, the old one, or all of the new. The file's mode follows the umask.

    Raises StorageError where the filesystem has no room or fails.
    """
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Publish bytes as `write_text_atomic` does."""
    tmp = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # a requeued twin cannot collide
    with storing(path):
        try:
            fd = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                write_all(fd, content)
                os.fsync(fd)
            finally:
                os.close(fd)
            tmp.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error tells more
                tmp.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def write_all(fd: int, content: bytes) -> None:
    """Write every byte. Unlike a buffered file, it keeps nothing to write later after an error."""
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Raise StorageError naming path in the place of an OSError for which the filesystem is to blame."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        raise StorageError(path, error.errno) from error


def write_json_atomic(path: Path, payload: Mapping[str, object]) -> None:
    """Publish payload as `write_text_atomic` does. Raises ValueError on NaN or infinity, before touching the disk."""
    write_text_atomic(path, json.dumps(payload, sort_keys=True, allow_nan=False, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in path. Raises ValueError where it is torn, no object, or holds NaN; OSError as `open` does."""
    return parse_json_object(path.read_text(encoding="utf-8"))


def parse_json_object(text: str) -> dict[str, Any]:
    """A JSON object from text. Raises ValueError on anything else, NaN and infinity included."""
    try:
        payload = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    if not isinstance(payload, dict):
        raise ValueError(f"expected a JSON object, found {type(payload).__name__}")
    return payload


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):  # 1e999: JSON by its looks
        raise ValueError(f"{text} is beyond what a float can hold")
    return value


def sync_directory(path: Path) -> None:
    """Make a rename in this directory durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Hex SHA-256 of the text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()
