"""What several unit tests share."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from autoresearch_hpc.dataset import MANIFEST, TOKEN_BYTES, TOKENIZER, DataFile, Manifest
from autoresearch_hpc.files import sha256_file, write_json_atomic

VOCAB_SIZE, SEQ_LEN, BOS = 300, 16, 0
TRAIN_ROWS, VAL_ROWS = (50, 30), 12


def write_dataset(root: Path, *, seed: int = 0) -> Path:
    """A data set of a few rows. Each token is the one before plus 1 to 4, so that there is something to learn."""
    root.mkdir(parents=True)
    random = np.random.default_rng(seed)

    def file(name: str, rows: int = 0) -> DataFile:
        return DataFile(name=name, size=(root / name).stat().st_size, sha256=sha256_file(root / name), rows=rows)

    def write_rows(name: str, rows: int) -> DataFile:
        tokens = random.integers(1, 5, size=(rows, SEQ_LEN + 1)).cumsum(axis=1) % (VOCAB_SIZE - 1) + 1
        tokens[:, 0] = BOS
        tokens[::3, SEQ_LEN // 2] = BOS  # a second document in some rows: a special token among the targets
        tokens.astype(np.uint16).tofile(root / name)
        return file(name, rows)

    (root / TOKENIZER).write_text("{}", encoding="utf-8")
    token_bytes = np.arange(VOCAB_SIZE, dtype=np.int32) % 4 + 1
    token_bytes[BOS] = 0
    token_bytes.tofile(root / TOKEN_BYTES)
    manifest = Manifest(
        corpus="tiny",
        vocab_size=VOCAB_SIZE,
        seq_len=SEQ_LEN,
        bos_id=BOS,
        tokenizer=file(TOKENIZER),
        token_bytes=file(TOKEN_BYTES),
        train=tuple(write_rows(f"train-{i:05d}.bin", rows) for i, rows in enumerate(TRAIN_ROWS)),
        val=(write_rows("val-00000.bin", VAL_ROWS),),
    )
    write_json_atomic(root / MANIFEST, asdict(manifest))
    return root


@pytest.fixture
def tiny_dataset(tmp_path: Path) -> Path:
    """A data set of 80 training and 12 validation rows of 17 tokens, vocabulary 300."""
    return write_dataset(tmp_path / "data sets" / "tïny 'set'")
