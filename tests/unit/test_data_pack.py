"""Packing: nothing lost, nothing padded, little cropped; files of rows that are what they say."""

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest

from autoresearch_hpc.data import pack as packing
from autoresearch_hpc.data.pack import pack, write_rows

BOS = 0


def _numbered(lengths: list[int]) -> list[np.ndarray]:
    """Documents of consecutive numbers, each number once in all of them: every token's origin can be told."""
    ends = np.cumsum(lengths)
    assert ends[-1] < 65536
    return [np.arange(end - length + 1, end + 1, dtype=np.uint16) for end, length in zip(ends, lengths, strict=True)]


def _pieces(rows: np.ndarray) -> list[np.ndarray]:
    flat = rows.ravel()
    return [piece[1:] for piece in np.split(flat, np.flatnonzero(flat == BOS)[1:])]


@pytest.mark.parametrize("waiting", [1, 8, 4096])
def test_no_padding_no_loss_and_every_row_starts_with_bos(monkeypatch: pytest.MonkeyPatch, waiting: int) -> None:
    monkeypatch.setattr(packing, "_WAITING", waiting)
    chance = random.Random(waiting)
    documents = _numbered([chance.choice([1, 2, 5, 31, 32, 33, 64, 400]) for _ in range(800)])
    width = 33
    rows = np.concatenate(list(pack(documents, width, BOS)))
    assert rows.shape[1] == width
    assert (rows[:, 0] == BOS).all()
    pieces = _pieces(rows)
    for piece in pieces:
        assert (np.diff(piece.astype(int)) == 1).all(), "a piece is a run of one document"
    kept = np.concatenate(pieces)
    assert len(np.unique(kept)) == len(kept), "no token is there twice"
    assert sum(map(len, documents)) - len(kept) < width, "only an unfinished row is left out"


def test_best_fit_crops_few_of_the_documents_that_fit() -> None:
    chance = random.Random(0)
    documents = _numbered([chance.randint(1, 60) for _ in range(2000)])
    rows = np.concatenate(list(pack(documents, 128, BOS)))
    pieces = {int(piece[0]): len(piece) for piece in _pieces(rows) if len(piece)}
    whole = sum(pieces.get(int(document[0])) == len(document) for document in documents)
    assert whole / len(documents) > 0.98


def test_a_document_that_just_fits_is_one_row() -> None:
    (rows,) = pack([np.arange(1, 16, dtype=np.uint16)], 16, BOS)
    assert rows.tolist() == [list(range(16))]


def test_too_little_for_a_row_is_no_row() -> None:
    assert list(pack([np.arange(1, 15, dtype=np.uint16)], 16, BOS)) == []
    assert list(pack([], 16, BOS)) == []


def test_rows_of_one_document_do_not_stay_neighbours(tmp_path: Path) -> None:
    documents = _numbered([320] * 100)
    (file,) = write_rows(pack(documents, 33, BOS), tmp_path, "train", 33)
    rows = np.fromfile(tmp_path / file.name, np.uint16).reshape(-1, 33)
    origin = (rows[:, 1].astype(int) - 1) // 320
    assert len(rows) == file.rows == 1000
    assert (np.diff(origin) == 0).mean() < 0.05


def test_large_output_is_several_files_that_together_hold_every_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packing, "FILE_BYTES", 10 * 2 * 9)
    monkeypatch.setattr(packing, "_BLOCK_BYTES", 7 * 2 * 9)  # blocks that do not divide files
    documents = _numbered([8] * 25)
    files = write_rows(pack(documents, 9, BOS), tmp_path, "val", 9)
    assert [(f.name, f.rows) for f in files] == [("val-00000.bin", 10), ("val-00001.bin", 10), ("val-00002.bin", 5)]
    rows = np.concatenate([np.fromfile(tmp_path / f.name, np.uint16).reshape(-1, 9) for f in files])
    assert sorted(rows[:, 1].tolist()) == [int(document[0]) for document in documents]
    for file in files:
        content = (tmp_path / file.name).read_bytes()
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert len(list(tmp_path.iterdir())) == 3, "no temporary file is left"
