"""Documents to tokens, in parts of a fixed amount of text, so that an interrupted preparation resumes.

    <folder>/00000.npz   tokens: uint16 of all the part's documents, without BOS; lengths: tokens of each document
    <folder>/done.json   how many parts there are; written last

A part appears under its name only when complete, and carries a checksum (that of the zip format).
"""

import os
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autoresearch_hpc.data import bpe
from autoresearch_hpc.errors import DataError
from autoresearch_hpc.files import read_json, write_json_atomic

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PART_BYTES = 16_000_000  # of text in a part
_BATCH_BYTES = 2_000_000  # of text encoded at once: enough for all cores, little memory


def encode_parts(
    tokenizer: "Tokenizer", documents: Iterable[tuple[str, int]], folder: Path, advance: Callable[[float], None]
) -> list[Path]:
    """The parts of these (text, bytes) documents; whatever is there already is kept. `advance` hears megabytes."""
    done = folder / "done.json"
    if done.is_file():
        return [folder / f"{i:05d}.npz" for i in range(int(read_json(done)["num_parts"]))]
    folder.mkdir(exist_ok=True)
    parts: list[Path] = []
    for texts, size in _groups(documents, PART_BYTES):
        path = folder / f"{len(parts):05d}.npz"
        parts.append(path)
        if _intact(path):
            advance(size / 1e6)
        else:
            _write(path, *_encode(tokenizer, texts, advance))
    write_json_atomic(done, {"num_parts": len(parts)})
    return parts


def read_part(path: Path) -> Iterator[npt.NDArray[np.uint16]]:
    """Each document's tokens, without BOS. Raises DataError where the part is damaged."""
    try:
        tokens, lengths = _load(path)
    except _BROKEN as error:
        raise DataError(f"damaged intermediate file {path}: {error}", f"delete {path.parent.parent}") from error
    start = 0
    for length in lengths.tolist():
        yield tokens[start : start + length]
        start += length


def _encode(
    tokenizer: "Tokenizer", texts: list[tuple[str, int]], advance: Callable[[float], None]
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
    tokens, lengths = [], []
    for batch, size in _groups(texts, _BATCH_BYTES):
        batch_tokens, batch_lengths = bpe.encode(tokenizer, [text for text, _ in batch])
        tokens.append(batch_tokens)
        lengths.append(batch_lengths)
        advance(size / 1e6)
    return np.concatenate(tokens), np.concatenate(lengths)


def _groups(documents: Iterable[tuple[str, int]], limit: int) -> Iterator[tuple[list[tuple[str, int]], int]]:
    """The documents in lists of at least `limit` bytes, the last one perhaps less."""
    group: list[tuple[str, int]] = []
    size = 0
    for document in documents:
        group.append(document)
        size += document[1]
        if size >= limit:
            yield group, size
            group, size = [], 0
    if group:
        yield group, size


def _write(path: Path, tokens: npt.NDArray[np.uint16], lengths: npt.NDArray[np.int64]) -> None:
    tmp = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with tmp.open("wb") as file:
        np.savez(file, tokens=tokens, lengths=lengths)
        file.flush()
        os.fsync(file.fileno())
    tmp.replace(path)


_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def _load(path: Path) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return arrays["tokens"], arrays["lengths"]


def _intact(path: Path) -> bool:
    try:
        _load(path)
    except _BROKEN:
        return False
    return True
