"""Files that a reader can trust, with readers and writers at work at the same time."""

import json
import os
import stat
import threading
from pathlib import Path

import pytest

from autoresearch_hpc import files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "a 'b' \"c\" ü"
    folder.mkdir()
    return folder / "größe %s.json"


def test_what_is_written_is_read(path: Path) -> None:
    payload = {"b": [1, 2.5, None, True], "a": {"ü": "x\ny"}}
    files.write_json_atomic(path, payload)
    assert files.read_json(path) == payload
    assert list(json.loads(path.read_text())) == ["a", "b"], "keys are sorted, so that equal contents are equal files"
    files.write_json_atomic(path, {})
    assert files.read_json(path) == {}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_never_reach_the_disk(path: Path, value: float) -> None:
    files.write_json_atomic(path, {"old": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json_atomic(path, {"deep": [{"in": value}]})
    assert files.read_json(path) == {"old": 1}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "text",
    ['{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": [-1e999]}', "[1]", "3", "", '{"a": 1', "[" * 100_000],
)
def test_what_is_no_json_object_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=r"\S"):
        files.read_json(path)


def test_numbers_within_a_floats_reach_are_read(path: Path) -> None:
    path.write_text('{"a": 1.7e308, "b": 1e-999, "c": 3.0}')
    assert files.read_json(path) == {"a": 1.7e308, "b": 0.0, "c": 3.0}


def test_bytes_that_are_no_text_are_refused(path: Path) -> None:
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match="utf-8"):
        files.read_json(path)


def test_readers_see_the_old_or_the_new_file_and_never_a_part(path: Path) -> None:
    size, rounds = 50_000, 40
    files.write_text_atomic(path, "0" * size)
    seen: set[str] = set()
    wrong: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            text = path.read_text()
            seen.add(text[:1])
            if text != text[:1] * size:
                wrong.append(text[:20])

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(rounds):
        files.write_text_atomic(path, str(number % 10) * size)
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert len(seen) > 1, "the readers have to have seen several versions for this to say anything"


def test_writers_of_one_file_do_not_disturb_each_other(path: Path) -> None:
    def write(digit: str) -> None:
        for _ in range(15):
            files.write_text_atomic(path, digit * 10_000)

    writers = [threading.Thread(target=write, args=(digit,)) for digit in "123"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_text() in {digit * 10_000 for digit in "123"}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o027, 0o640), (0o077, 0o600)])
def test_the_mode_follows_the_umask(path: Path, umask: int, mode: int) -> None:
    previous = os.umask(umask)
    try:
        files.write_json_atomic(path, {})
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_failed_write_leaves_nothing_behind(path: Path) -> None:
    path.mkdir()  # a directory cannot be replaced by a file
    with pytest.raises(OSError, match="directory"):
        files.write_text_atomic(path, "x")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_hashes(path: Path) -> None:
    path.write_bytes("ü".encode())
    assert files.sha256_file(path) == files.sha256_text("ü")
    assert files.sha256_text("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
