"""A prepared data set on disk: what opening notices, and what only hashing does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoresearch_hpc.dataset import MANIFEST, TOKEN_BYTES, TOKENIZER, Dataset
from autoresearch_hpc.errors import DataError


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    payload = json.loads((root / MANIFEST).read_text())
    change(payload)
    (root / MANIFEST).write_text(json.dumps(payload))


def refused(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        Dataset(root)
    text = str(caught.value)
    assert "\n" not in text
    assert "python -m autoresearch_hpc.prepare" in text
    return text


def test_rows_are_read_only_maps_of_the_files(tiny_dataset: Path) -> None:
    data = Dataset(tiny_dataset)
    data.verify()
    first, second = data.rows("train")
    assert (first.shape, second.shape) == ((50, 17), (30, 17))
    assert data.manifest.rows("train") == 80
    assert first.tobytes() == (tiny_dataset / "train-00000.bin").read_bytes()
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1
    assert data.token_bytes().shape == (300,)
    assert data.token_bytes()[0] == 0


def test_no_data(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere").startswith(f"no data in {tmp_path / 'nowhere'}; prepare it")
    (tmp_path / "file").touch()
    assert "unreadable manifest" in refused(tmp_path / "file")


@pytest.mark.parametrize("name", [TOKENIZER, TOKEN_BYTES, "train-00001.bin", "val-00000.bin"])
def test_a_file_of_another_size_is_noticed_at_once(tiny_dataset: Path, name: str) -> None:
    with (tiny_dataset / name).open("ab") as file:
        file.write(b"x")
    assert f"{tiny_dataset / name} has " in refused(tiny_dataset)
    (tiny_dataset / name).unlink()
    assert f"{tiny_dataset / name} is missing" in refused(tiny_dataset)


def test_a_flipped_bit_is_noticed_by_hashing(tiny_dataset: Path) -> None:
    path = tiny_dataset / "train-00001.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    data = Dataset(tiny_dataset)
    with pytest.raises(DataError, match=r"train-00001\.bin fails its checksum"):
        data.verify()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("vocab_size"), "vocab_size"),
        (lambda m: m.update(extra=1), "extra"),
        (lambda m: m.update(schema=2), "schema 2, this version reads 1"),
        (lambda m: m.update(train=3), "unreadable manifest"),
        (lambda m: m.update(train=["x"]), "unreadable manifest"),
        (lambda m: m["val"][0].pop("sha256"), "sha256"),
        (lambda m: m.update(seq_len=17), "does not hold 50 rows of 18 tokens"),
        (lambda m: m["val"][0].update(rows=13), "does not hold 13 rows of 17 tokens"),
        (lambda m: m.update(vocab_size=301), "does not hold 301 tokens"),
    ],
)
def test_a_manifest_that_makes_no_sense(tiny_dataset: Path, change: Callable[[Any], object], words: str) -> None:
    edit(tiny_dataset, change)
    assert words in refused(tiny_dataset)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": NaN}', "\0"])
def test_a_damaged_manifest(tiny_dataset: Path, text: str) -> None:
    (tiny_dataset / MANIFEST).write_text(text)
    assert "unreadable manifest" in refused(tiny_dataset)


def test_the_identity_is_of_the_content(tiny_dataset: Path) -> None:
    before = Dataset(tiny_dataset).manifest.sha256
    edit(tiny_dataset, lambda m: m.update(source="other words for people", sha256="written for people"))
    assert Dataset(tiny_dataset).manifest.sha256 == before
    edit(tiny_dataset, lambda m: m["val"][0].update(sha256="0" * 64))
    assert Dataset(tiny_dataset).manifest.sha256 != before


def test_values_are_those_of_the_files(tiny_dataset: Path) -> None:
    rows = Dataset(tiny_dataset).rows("val")[0]
    assert rows.dtype == np.uint16
    assert int(rows.max()) < 300
    assert (rows[:, 0] == 0).all()
