"""A prepared data set on disk: what `data/` writes and trials map read-only.

    <dir>/manifest.json     sizes and SHA-256 of every file below, written last: it makes the data set exist
    <dir>/tokenizer.json    the BPE, in the tokenizers library's format
    <dir>/token_bytes.bin   int32 per token id: its UTF-8 bytes, 0 for special tokens
    <dir>/train-00000.bin   rows of seq_len+1 uint16 tokens, BOS-aligned, packed without padding
    <dir>/val-00000.bin     likewise, fixed for ever

The reader checks every file's size at once; its content only on request (`verify`), because hashing gigabytes on
every node would cost more than it saves.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from autoresearch_hpc.errors import DataError
from autoresearch_hpc.files import read_json, sha256_file, sha256_text

if TYPE_CHECKING:  # imported where rows are read: workers and controllers look at the manifest alone
    import numpy as np
    import numpy.typing as npt

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
TOKEN_BYTES = "token_bytes.bin"
SCHEMA = 1
_TOKEN_SIZE, _COUNT_SIZE = 2, 4  # bytes: uint16, int32

Split = Literal["train", "val"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One file of the data set. `rows` is 0 for what holds no rows."""

    name: str
    size: int
    sha256: str
    rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """manifest.json: what the data set is and what its files must be."""

    corpus: str
    vocab_size: int
    seq_len: int
    bos_id: int
    tokenizer: DataFile
    token_bytes: DataFile
    train: tuple[DataFile, ...]
    val: tuple[DataFile, ...]
    source: str = ""  # where the text came from, for people
    schema: int = SCHEMA

    @property
    def sha256(self) -> str:
        """The data set's identity: a hash over the hashes of its files and its shape."""
        parts = [self.corpus, str(self.vocab_size), str(self.seq_len), str(self.bos_id)]
        parts += [f.sha256 for f in (self.tokenizer, self.token_bytes, *self.train, *self.val)]
        return sha256_text("\n".join(parts))

    def rows(self, split: Split) -> int:
        return sum(file.rows for file in getattr(self, split))


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """The shape of the data, all that a model may know of it."""

    vocab_size: int
    seq_len: int
    bos_id: int


class Dataset:
    """A data set opened for reading.

    Raises DataError where the manifest is missing or unreadable, or a file's size is not the manifest's
    or not its rows'.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest = read_manifest(root)
        for file in self._files():
            path = root / file.name
            size = path.stat().st_size if path.is_file() else None
            if size != file.size:
                found = "is missing" if size is None else f"has {size} bytes instead of {file.size}"
                raise DataError(f"damaged data: {path} {found}", _REMEDY)
        self._check_shapes()

    @property
    def meta(self) -> Meta:
        m = self.manifest
        return Meta(vocab_size=m.vocab_size, seq_len=m.seq_len, bos_id=m.bos_id)

    def _check_shapes(self) -> None:
        m, width = self.manifest, self.manifest.seq_len + 1
        for file in (*m.train, *m.val):
            if file.size != file.rows * width * _TOKEN_SIZE:
                raise DataError(f"{self.root / file.name} does not hold {file.rows} rows of {width} tokens", _REMEDY)
        if m.token_bytes.size != m.vocab_size * _COUNT_SIZE:
            raise DataError(f"{self.root / m.token_bytes.name} does not hold {m.vocab_size} tokens", _REMEDY)

    def verify(self) -> None:
        """Hash every file. Raises DataError naming the first that is not what the manifest says."""
        for file in self._files():
            if sha256_file(self.root / file.name) != file.sha256:
                raise DataError(f"damaged data: {self.root / file.name} fails its checksum", _REMEDY)

    def rows(self, split: Split) -> "Sequence[npt.NDArray[np.uint16]]":
        """The split's files as read-only memory maps, each `(rows, seq_len + 1)`."""
        import numpy as np

        width = self.manifest.seq_len + 1
        files: tuple[DataFile, ...] = getattr(self.manifest, split)
        return [np.memmap(self.root / file.name, dtype=np.uint16, mode="r", shape=(file.rows, width)) for file in files]

    def open_rows(self, split: Split) -> list[int]:
        """The split's files as open file descriptors, for `map_rows` in another process. The caller closes them."""
        files: tuple[DataFile, ...] = getattr(self.manifest, split)
        return [os.open(self.root / file.name, os.O_RDONLY | os.O_CLOEXEC) for file in files]

    def token_bytes(self) -> "npt.NDArray[np.int32]":
        """UTF-8 bytes of each token id, `(vocab_size,)`; 0 for special tokens."""
        import numpy as np

        return np.fromfile(self.root / TOKEN_BYTES, dtype=np.int32)

    def _files(self) -> tuple[DataFile, ...]:
        m = self.manifest
        return (m.tokenizer, m.token_bytes, *m.train, *m.val)


def map_rows(fd: int, rows: int, seq_len: int) -> "npt.NDArray[np.uint16]":
    """An open file of rows as a read-only memory map `(rows, seq_len + 1)`; closes fd."""
    import numpy as np

    with os.fdopen(fd, "rb") as file:
        return np.memmap(file, dtype=np.uint16, mode="r", shape=(rows, seq_len + 1))


def read_manifest(root: Path) -> Manifest:
    """The manifest in root. Raises DataError where there is none or it cannot be read."""
    path = root / MANIFEST
    try:
        payload = read_json(path)
    except FileNotFoundError:
        raise DataError(f"no data in {root}", "prepare it: python -m autoresearch_hpc.prepare") from None
    except (OSError, ValueError) as error:
        raise DataError(f"unreadable manifest {path}: {error}", _REMEDY) from error
    try:
        files = {key: _data_file(payload.pop(key)) for key in ("tokenizer", "token_bytes")}
        splits = {key: tuple(_data_file(f) for f in payload.pop(key)) for key in ("train", "val")}
        payload.pop("sha256", None)  # written for people; always computed
        manifest = Manifest(**payload, **files, **splits)  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        raise DataError(f"unreadable manifest {path}: {error}", _REMEDY) from error
    if manifest.schema != SCHEMA:
        raise DataError(f"{path} has schema {manifest.schema}, this version reads {SCHEMA}", _REMEDY)
    return manifest


def _data_file(payload: dict[str, object]) -> DataFile:
    return DataFile(**payload)  # type: ignore[arg-type]


_REMEDY = "delete the folder and prepare it again: python -m autoresearch_hpc.prepare"
