"""The journal: what survives a crash, and what is noticed after one."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from autoresearch_hpc.errors import JournalError
from autoresearch_hpc.journal import Journal, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / 'it\'s a "run" ü'
    folder.mkdir()
    return folder / "journal.jsonl"


def filled(path: Path, count: int = 3) -> bytes:
    with Journal(path) as journal:
        for number in range(count):
            journal.append("tick", number=number, text="zwölf\nlines\u2028\r")
    return path.read_bytes()


def test_events_come_back_in_order_with_their_data(path: Path) -> None:
    filled(path)
    with Journal(path) as journal:
        assert [event.data["number"] for event in journal.events] == [0, 1, 2]
        assert journal.append("tock", deep={"a": [1, None]}).seq == 3
    events = read(path)
    assert [(event.seq, event.event) for event in events] == [(0, "tick"), (1, "tick"), (2, "tick"), (3, "tock")]
    assert events[0].data == {"number": 0, "text": "zwölf\nlines\u2028\r"}
    assert events[3].data == {"deep": {"a": [1, None]}}
    assert all(event.at.endswith("+00:00") for event in events)
    assert len(path.read_bytes().split(b"\n")) == 5, "one line an event"


def test_a_new_journal_is_empty_and_a_missing_one_is_an_os_error(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(path)
    Journal(path).close()
    assert read(path) == []


def test_a_line_torn_anywhere_is_dropped_and_overwritten(path: Path) -> None:
    whole = filled(path)
    two = whole[: whole[:-1].rfind(b"\n") + 1]
    for cut in (len(two) + 1, len(two) + 20, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert [event.seq for event in read(path)] == [0, 1]
        assert path.read_bytes() == whole[:cut], "a reader changes nothing"
        with Journal(path) as journal:
            assert len(journal.events) == 2
            assert journal.append("after").seq == 2
        assert path.read_bytes().startswith(two)
        assert [event.event for event in read(path)] == ["tick", "tick", "after"]


def test_a_tail_of_zeros_is_a_torn_line(path: Path) -> None:
    path.write_bytes(filled(path) + b"\0" * 4096)
    assert len(read(path)) == 3


@pytest.mark.parametrize(
    ("line", "replacement", "words"),
    [
        (0, b"", "line 1: "),
        (1, b"garbage", "line 2: "),
        (1, b"[1, 2]", "line 2: expected a JSON object"),
        (1, b"\xff\xfe", "line 2: 'utf-8' codec"),
        (2, b'{"seq": 2, "at": "2026-01-01T00:00:00+00:00"}', "line 3: 'event'"),
        (1, b'{"seq": 1, "at": "yesterday", "event": "x"}', "line 2: Invalid isoformat"),
        (1, b'{"seq": 1, "at": 3, "event": "x"}', "line 2: "),
        (1, b'{"seq": 7, "at": "2026-01-01T00:00:00+00:00", "event": "x"}', "line 2 has seq 7"),
        (1, b'{"seq": 1, "at": "2026-01-01T00:00:00+00:00", "event": "x", "v": NaN}', "line 2: NaN"),
        (1, b'{"seq": 1, "at": "2026-01-01T00:00:00+00:00", "event": "x"', "line 2: "),
    ],
)
def test_any_other_damage_names_file_and_line(path: Path, line: int, replacement: bytes, words: str) -> None:
    lines = filled(path).split(b"\n")
    lines[line] = replacement
    path.write_bytes(b"\n".join(lines))
    before = path.read_bytes()
    for open_ in (read, Journal):
        with pytest.raises(JournalError) as caught:
            open_(path)
        text = str(caught.value)
        assert f"damaged journal: {path} {words}" in text
        assert "another tag=" in text
        assert "\n" not in text
    assert path.read_bytes() == before


def test_a_line_that_went_missing_is_noticed(path: Path) -> None:
    lines = filled(path).split(b"\n")
    del lines[1]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(JournalError, match="line 2 has seq 2"):
        read(path)


def test_what_is_no_json_is_not_half_written(path: Path) -> None:
    before = filled(path)
    with Journal(path) as journal:
        with pytest.raises(ValueError, match="JSON compliant"):
            journal.append("bad", value=float("nan"))
        with pytest.raises(TypeError):
            journal.append("bad", value=object())
        assert path.read_bytes() == before
        assert journal.append("good").seq == 3
    assert len(read(path)) == 4


@pytest.mark.parametrize("name", ["seq", "at"])
def test_data_cannot_pass_for_the_envelope(path: Path, name: str) -> None:
    with Journal(path) as journal:
        with pytest.raises(ValueError, match=name):
            journal.append("x", **{name: 7})
        journal.append("fine")
    assert [event.seq for event in read(path)] == [0]


def test_a_reader_beside_a_writer_sees_a_growing_prefix(path: Path) -> None:
    Journal(path).close()
    lengths: list[int] = []
    done = threading.Event()

    def follow() -> None:
        while not done.is_set():
            lengths.append(len(read(path)))

    reader = threading.Thread(target=follow)
    reader.start()
    with Journal(path) as journal:
        for number in range(60):
            journal.append("big", number=number, text="x" * 20_000)
    done.set()
    reader.join()
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 2
    assert len(read(path)) == 60


WRITER = """
import sys
from pathlib import Path
from autoresearch_hpc.journal import Journal
with Journal(Path(sys.argv[1])) as journal:
    print("ready", flush=True)
    number = len(journal.events)
    while True:
        journal.append("tick", number=number, text="x" * (number % 50 * 400))
        print(number, flush=True)  # announced only after it is durable
        number += 1
"""


def test_a_writer_killed_at_any_moment_leaves_all_that_it_announced(path: Path) -> None:
    """Five generations append to one journal, each killed at random; a torn line is planted between two of them."""
    chance = random.Random(2)
    announced, before = -1, 0
    for generation in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout
        lines = [writer.stdout.readline() for _ in range(1 + chance.randrange(6))]
        assert lines[0] == b"ready\n"
        time.sleep(chance.uniform(0.0, 0.005))
        os.kill(writer.pid, signal.SIGKILL)
        lines = [*lines[1:], *writer.communicate()[0].splitlines(keepends=True)]
        announced = max([announced, *[int(line) for line in lines if line.endswith(b"\n")]])
        events = read(path)
        assert [event.data["number"] for event in events] == list(range(len(events)))
        assert len(events) >= announced + 1
        assert len(events) <= max(before, announced + 1) + 1, "at most one that it had not yet told"
        before = len(events)
        if generation == 2:
            with path.open("ab") as file:
                file.write(json.dumps({"seq": len(events)})[:-3].encode())
    assert announced > 5
