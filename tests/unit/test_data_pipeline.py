"""Whole preparations: what comes out, that it is the same each time, and that nothing interrupts it for good."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from autoresearch_hpc.config import CorpusConfig
from autoresearch_hpc.data import bpe, encode, prepare, verify
from autoresearch_hpc.dataset import Dataset
from autoresearch_hpc.errors import ConfigError, DataError

WIDTH = 33
_WORDS = [
    "def",
    "return",
    "größer",
    "🙂",
    "lambda",
    "self.value",
    "==",
    "中文",
    "import",
    "x1",
    "while",
    "0.5",
    "(",
    ")",
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 600 documents, one of them twice under another name."""
    folder = tmp_path_factory.mktemp("te xt 'ü' [1]")
    chance = random.Random(5)
    rows = [" ".join(chance.choices(_WORDS, k=chance.randint(3, 120))) for _ in range(600)]
    (folder / "a b.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    (folder / "held out.txt").write_text("\n".join(rows[:60]), encoding="utf-8")
    return folder


def _config(text: Path, into: Path, **settings: object) -> CorpusConfig:
    given = {"name": "files", "dir": str(into), "vocab_size": 320, "seq_len": WIDTH - 1, "tokenizer_mb": 0.05}
    return CorpusConfig(**{**given, "files": [str(text / "a b.jsonl")], **settings})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plain(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The data set that an undisturbed preparation makes."""
    data = Dataset(prepare(_config(text, tmp_path_factory.mktemp("plain")), quiet=True))
    data.verify()
    return data


def test_every_row_starts_with_bos_and_is_full(plain: Dataset) -> None:
    for split in ("train", "val"):
        for rows in plain.rows(split):  # type: ignore[arg-type]
            assert rows.shape[1] == WIDTH
            assert (rows[:, 0] == plain.manifest.bos_id).all()
            assert rows.max() < 320


def test_all_text_is_in_the_rows(plain: Dataset, text: Path) -> None:
    """The bytes of all tokens are the bytes of the text, up to one unfinished row a split."""
    sizes = plain.token_bytes()
    total = sum(int(sizes[rows].sum()) for split in ("train", "val") for rows in plain.rows(split))  # type: ignore[arg-type]
    documents = [json.loads(line)["text"] for line in (text / "a b.jsonl").read_text(encoding="utf-8").splitlines()]
    whole = sum(len(document.encode()) for document in documents)
    assert whole - 2 * WIDTH * sizes.max() < total <= whole


def test_rows_decode_to_the_text_and_token_bytes_count_it(plain: Dataset, text: Path) -> None:
    tokenizer = bpe.load(plain.root / "tokenizer.json")
    sizes = plain.token_bytes()
    written = (text / "a b.jsonl").read_text(encoding="utf-8")
    known = [json.loads(line)["text"] for line in written.splitlines()]
    checked = 0
    for row in np.concatenate(plain.rows("val"))[:40]:
        for piece in np.split(row, np.flatnonzero(row == 0)[1:]):
            decoded = tokenizer.decode(piece[1:].tolist())
            if decoded and "\ufffd" not in decoded:  # cut inside a character
                assert any(decoded in document for document in known)
                assert sizes[piece].sum() == len(decoded.encode())
                checked += 1
    assert checked > 40


def test_same_text_same_bytes(plain: Dataset, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_BATCH_BYTES", 1000)  # how the work is cut up does not matter
    again = Dataset(prepare(_config(text, tmp_path / "da ta 'ü'"), quiet=True))
    assert again.manifest.sha256 == plain.manifest.sha256
    for name in ("train-00000.bin", "val-00000.bin", "tokenizer.json", "token_bytes.bin"):
        assert (again.root / name).read_bytes() == (plain.root / name).read_bytes()


def test_nothing_but_the_data_set_is_left(plain: Dataset) -> None:
    assert [path.name for path in plain.root.parent.iterdir()] == ["files-v320-t32"]
    names = {path.name for path in plain.root.iterdir()}
    assert names == {
        *("manifest.json", "recipe.json", "tokenizer.json", "token_bytes.bin", "train-00000.bin", "val-00000.bin")
    }
    manifest = json.loads((plain.root / "manifest.json").read_text())
    assert manifest["sha256"] == plain.manifest.sha256


def test_validation_documents_never_train(text: Path, tmp_path: Path) -> None:
    """Validation text that also stands among the training files is left out there."""
    (tmp_path / "both.jsonl").write_text((text / "a b.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    lines = (text / "a b.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "val.jsonl").write_text("".join(lines[:100]), encoding="utf-8")
    config = _config(
        text, tmp_path / "data", files=[str(tmp_path / "both.jsonl")], val_files=[str(tmp_path / "val.jsonl")]
    )
    data = Dataset(prepare(config, quiet=True))
    tokenizer, sizes = bpe.load(data.root / "tokenizer.json"), data.token_bytes()
    train_bytes = sum(int(sizes[rows].sum()) for rows in data.rows("train"))
    kept = sum(len(json.loads(line)["text"].encode()) for line in lines[100:])
    assert kept - WIDTH * sizes.max() < train_bytes <= kept
    train_text = "\n".join(tokenizer.decode(row.tolist()) for rows in data.rows("train") for row in rows)
    starts = [json.loads(line)["text"][:40] for line in lines[:100] if len(json.loads(line)["text"]) > 200]
    assert starts
    assert not any(start in train_text for start in starts)


def test_existing_data_set_is_returned_untouched(plain: Dataset, text: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in plain.root.iterdir()}
    assert prepare(_config(text, plain.root.parent)) == plain.root
    assert prepare(_config(text, plain.root.parent, files=[])) == plain.root, "nothing else was asked for"
    assert {path: path.stat().st_mtime_ns for path in plain.root.iterdir()} == before


def test_other_settings_are_refused_not_served(plain: Dataset, text: Path) -> None:
    with pytest.raises(DataError, match=r"was prepared with tokenizer_mb=0\.05, not 0\.1; ask for the same"):
        prepare(_config(text, plain.root.parent, tokenizer_mb=0.1))


def test_max_train_mb(text: Path, tmp_path: Path) -> None:
    data = Dataset(prepare(_config(text, tmp_path, max_train_mb=0.02), quiet=True))
    size = sum(int(data.token_bytes()[rows].sum()) for rows in data.rows("train"))
    assert 0.018e6 < size < 0.022e6


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_damage_is_found(plain: Dataset, text: Path, tmp_path: Path, damage: str) -> None:
    root = shutil.copytree(plain.root, tmp_path / plain.root.name)
    victim = root / ("manifest.json" if damage == "manifest" else "train-00000.bin")
    content = victim.read_bytes()
    if damage == "remove":
        victim.unlink()
    elif damage == "flip":
        victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        victim.write_bytes(content[:-7])
    config = _config(text, tmp_path)
    with pytest.raises(DataError, match=r"(?:damaged data|unreadable manifest).*delete the folder") as caught:
        verify(config)
    assert "\n" not in str(caught.value)
    if damage == "flip":  # only hashing shows it
        assert prepare(config) == root
    else:
        with pytest.raises(DataError, match="delete the folder"):
            prepare(config)


def test_folder_of_another_shape(plain: Dataset, text: Path, tmp_path: Path) -> None:
    shutil.copytree(plain.root, tmp_path / "files-v320-t64")
    with pytest.raises(DataError, match="vocabulary 320 and 32 tokens a row; its name says otherwise"):
        prepare(_config(text, tmp_path, seq_len=64))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"seq_len": 100000}, DataError, "too little validation text for one row of 100001 tokens"),
        ({"name": "wikipedia"}, ConfigError, "no corpus named 'wikipedia'; there are: python, climbmix, files"),
        ({"tokenizer_mb": 0.0}, ConfigError, r"corpus\.tokenizer_mb=0\.0"),
        ({"max_train_mb": -1.0}, ConfigError, r"corpus\.max_train_mb=-1\.0"),
    ],
)
def test_impossible_requests(
    text: Path, tmp_path: Path, settings: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepare(_config(text, tmp_path, **settings), quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_directory_that_cannot_be_made(text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot prepare .*Not a directory"):
        prepare(_config(text, tmp_path / "file" / "data"), quiet=True)


def _child(config: CorpusConfig, before: str = "") -> str:
    """A program that prepares config after the statements `before`."""
    return f"""
import os, signal, time
from autoresearch_hpc.config import CorpusConfig
from autoresearch_hpc.data import bpe, encode, pack, pipeline

encode.PART_BYTES = 10_000

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def dying_after(function, calls):
    def called(*args, **kwargs):
        nonlocal calls
        result = function(*args, **kwargs)
        calls -= 1
        if calls == 0:
            die()
        return result
    return called

{before}
pipeline.prepare(CorpusConfig(**{vars(config)!r}), quiet=True)
"""


@pytest.mark.parametrize(
    ("moment", "kept"),
    [
        ("bpe.train = die", 0),
        ("bpe.save = dying_after(bpe.save, 1)", 0),
        ("encode._write = dying_after(encode._write, 7)", 7),
        ("pipeline.write_rows = dying_after(pipeline.write_rows, 1)", 100),
        ("pipeline.Manifest = die", 100),
        ("pipeline.sync_directory = die", 100),  # published, not yet cleaned up
    ],
)
def test_killed_at_any_moment_and_started_again(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, kept: int
) -> None:
    monkeypatch.setattr(encode, "PART_BYTES", 10_000)
    config = _config(text, tmp_path / "killed")
    killed = subprocess.run([sys.executable, "-c", _child(config, moment)], check=False)
    assert killed.returncode == -signal.SIGKILL
    published = "sync_directory" in moment
    assert config.path.exists() == published, "a reader sees nothing or all"

    parts = sorted(config.path.with_name(f"{config.path.name}.partial").glob("*/*.npz"))
    assert len(parts) >= min(kept, 10)
    damaged = {parts[2]} if kept == 7 else set()
    for part in damaged:
        part.write_bytes(part.read_bytes()[:-5])
    written = []
    original = encode._write
    monkeypatch.setattr(encode, "_write", lambda path, *arrays: (written.append(path), original(path, *arrays)))
    resumed = Dataset(prepare(config, quiet=True))
    monkeypatch.undo()
    monkeypatch.setattr(encode, "PART_BYTES", 10_000)
    assert set(parts) & set(written) == damaged, "whole parts are kept, a damaged one is made again"
    assert bool(written) == (kept < 100)

    undisturbed = Dataset(prepare(_config(text, tmp_path / "undisturbed"), quiet=True))
    assert resumed.manifest.sha256 == undisturbed.manifest.sha256
    assert [path.name for path in resumed.root.parent.iterdir()] == [resumed.root.name]


def test_half_done_work_of_other_text_is_thrown_away(text: Path, tmp_path: Path) -> None:
    source = tmp_path / "t.jsonl"
    shutil.copy(text / "a b.jsonl", source)
    config = _config(text, tmp_path / "data", files=[str(source)])
    subprocess.run([sys.executable, "-c", _child(config, "pipeline.Manifest = die")], check=False)
    assert config.path.with_name(f"{config.path.name}.partial").exists()
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    source.write_text("".join(lines[300:]), encoding="utf-8")
    data = Dataset(prepare(config, quiet=True))
    size = sum(int(data.token_bytes()[rows].sum()) for rows in (*data.rows("train"), *data.rows("val")))
    assert size <= sum(len(json.loads(line)["text"].encode()) for line in lines[300:])


def test_two_at_once_prepare_once(text: Path, tmp_path: Path) -> None:
    config = _config(text, tmp_path / "data")
    slow = f"""
train = bpe.train
def slow(*args):
    open({str(tmp_path)!r} + f"/trained-{{os.getpid()}}", "w").close()
    time.sleep(1)
    return train(*args)
bpe.train = slow
"""
    program = _child(config, slow)
    both = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(list(tmp_path.glob("trained-*"))) == 1
    Dataset(config.path).verify()
    assert [path.name for path in config.path.parent.iterdir()] == [config.path.name]


def test_waiting_one_takes_over_when_the_first_is_killed(text: Path, tmp_path: Path) -> None:
    config = _config(text, tmp_path / "data")
    first = subprocess.Popen([sys.executable, "-c", _child(config, "bpe.train = lambda *a: time.sleep(600)")])
    lock = config.path.with_name(f"{config.path.name}.lock")
    _wait(lambda: lock.exists() and (lock.parent / f"{config.path.name}.partial" / "recipe.json").exists())
    second = subprocess.Popen([sys.executable, "-c", _child(config)])
    time.sleep(1.5)
    assert second.poll() is None
    os.kill(first.pid, signal.SIGKILL)  # and not waited for: a zombie counts as gone
    assert second.wait(60) == 0
    first.wait()
    Dataset(config.path).verify()


def _wait(condition: object, limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_python_corpus_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdlib = tmp_path / "lib"
    stdlib.mkdir()
    for i in range(80):
        (stdlib / f"m{i}.py").write_text(f"def function_{i}(a, b):\n    return a * {i} + b\n\n" * 20)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(stdlib))
    data = Dataset(prepare(CorpusConfig(dir=str(tmp_path / "data"), vocab_size=300, seq_len=64), quiet=True))
    assert data.root.name == "python-v300-t64"
    assert data.manifest.source.startswith("standard library of CPython 3.")
    assert data.manifest.rows("train") > 8 * data.manifest.rows("val") > 0
