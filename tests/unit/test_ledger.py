"""What is recorded is durable first, and then so."""

from pathlib import Path

import pytest

from autoresearch_hpc.history import History
from autoresearch_hpc.journal import Journal, read
from autoresearch_hpc.ledger import Ledger

START = {
    "tag": "t",
    "uid": "0",
    "version": "0",
    "config_sha256": "",
    "repo": "",
    "start_commit": "c",
    "metric": "loss",
    "direction": "min",
    "pid": 1,
    "host": "h",
}


def test_the_history_is_the_journals_replay(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        ledger = Ledger(journal)
        ledger.record("run.started", **START)
        ledger.record("run.interrupted", reason="SIGINT", cancelled=[])
        assert ledger.history == History.replay(read(path))
        assert ledger.history.interrupted == "SIGINT"
    with Journal(path) as journal:
        assert Ledger(journal).history.tag == "t"


def test_what_could_not_be_written_has_not_happened(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        ledger = Ledger(journal)
        with pytest.raises(ValueError, match="JSON"):
            ledger.record("run.started", **{**START, "pid": float("nan")})
        assert ledger.history.started_at is None
