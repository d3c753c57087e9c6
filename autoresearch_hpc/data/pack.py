"""Tokens to rows: best-fit packing without padding, and the files of rows.

A row holds `width` = seq_len + 1 tokens and starts with BOS, as does every piece of a document in it. A document
longer than a row falls into pieces that fill rows of their own and a rest. A row takes the longest waiting piece that
still fits, again and again; where none fits, a piece is cropped to fill the row and its rest, with a BOS of its own,
waits on. So no token of the text is lost or repeated, except in the last, unfinished row.
"""

import hashlib
import os
import uuid
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autoresearch_hpc.dataset import DataFile

Tokens = npt.NDArray[np.uint16]

FILE_BYTES = 1 << 30  # largest file of rows
_WAITING = 4096  # pieces to choose from
_BLOCK_BYTES = 1 << 26  # rows that are shuffled together, in memory


def pack(documents: Iterable[Tokens], width: int, bos_id: int) -> Iterator[Tokens]:
    """Rows of `width` tokens, in blocks of shape (n, width), from documents that are given without BOS."""
    waiting = _Waiting()
    block_rows = max(1, _BLOCK_BYTES // (2 * width))
    block, filled = _block(block_rows, width), 0
    for document in chain(documents, [None]):
        if document is not None:
            for start in range(0, len(document), width - 1):
                waiting.add(document[start : start + width - 1])
        while waiting.tokens >= width and (document is None or waiting.num > _WAITING):
            _fill(block[filled], waiting, bos_id)
            filled += 1
            if filled == block_rows:
                yield block
                block, filled = _block(block_rows, width), 0
    if filled:
        yield block[:filled]


def _block(rows: int, width: int) -> Tokens:
    return np.empty((rows, width), np.dtype("<u2"))


def write_rows(blocks: Iterable[Tokens], folder: Path, name: str, width: int) -> tuple[DataFile, ...]:
    """Write `<name>-00000.bin` and so on, every block's rows in an order of their own. Returns what was written."""
    # RandomState's stream is frozen by NumPy for ever, a Generator's is not.
    shuffle = np.random.RandomState(0)
    limit = max(1, FILE_BYTES // (2 * width))
    files: list[_RowFile] = []
    for block in blocks:
        rows = block[shuffle.permutation(len(block))]
        while len(rows):
            if not files or files[-1].rows == limit:
                files.append(_RowFile(folder / f"{name}-{len(files):05d}.bin"))
            room = limit - files[-1].rows
            files[-1].write(rows[:room])
            rows = rows[room:]
            if files[-1].rows == limit:
                files[-1].close()
    return tuple(file.close() for file in files)


class _Waiting:
    """Pieces by length; `tokens` counts each piece's BOS too."""

    def __init__(self) -> None:
        self.num = 0
        self.tokens = 0
        self._by_length: dict[int, list[Tokens]] = {}
        self._lengths: list[int] = []  # those with pieces, ascending

    def add(self, piece: Tokens) -> None:
        piece = piece.copy()  # a view would keep the whole part that it was cut from in memory
        pieces = self._by_length.get(len(piece))
        if pieces is None:
            self._by_length[len(piece)] = [piece]
            insort(self._lengths, len(piece))
        else:
            pieces.append(piece)
        self.num += 1
        self.tokens += len(piece) + 1

    def take(self, room: int) -> Tokens:
        """The longest piece of at most `room` tokens, else simply the longest: its rest stays long."""
        place = bisect_right(self._lengths, room) - 1  # -1, the last, where none is short enough
        length = self._lengths[place]
        pieces = self._by_length[length]
        piece = pieces.pop()
        if not pieces:
            del self._by_length[length], self._lengths[place]
        self.num -= 1
        self.tokens -= length + 1
        return piece


def _fill(row: Tokens, waiting: _Waiting, bos_id: int) -> None:
    at = 0
    while at < len(row):
        room = len(row) - at - 1
        piece = waiting.take(room)
        row[at] = bos_id
        if len(piece) > room:
            waiting.add(piece[room:])
            piece = piece[:room]
        row[at + 1 : at + 1 + len(piece)] = piece
        at += 1 + len(piece)


class _RowFile:
    """One file of rows, hashed while it is written; under its name only when complete."""

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self._path = path
        self._tmp = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        self._file = self._tmp.open("wb")
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, rows: Tokens) -> None:
        data = np.ascontiguousarray(rows, np.dtype("<u2")).data
        self._file.write(data)
        self._hash.update(data)
        self._size += data.nbytes
        self.rows += len(rows)

    def close(self) -> DataFile:
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._tmp.replace(self._path)
        return DataFile(name=self._path.name, size=self._size, sha256=self._hash.hexdigest(), rows=self.rows)
