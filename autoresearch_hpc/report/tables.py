"""results.tsv and trials.csv: a run's outcome for spreadsheets and scripts.

results.tsv is karpathy/autoresearch's: `commit val_bpb memory_gb status description`, tab separated, one judged
candidate a line; a failed one has no value, never 0.0. trials.csv has one line for every trial and a column for
every field of result.json, nested ones with dots (`phases.train_s`).
"""

import csv
import dataclasses
import io
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoresearch_hpc.files import write_text_atomic
from autoresearch_hpc.history import Entry, History
from autoresearch_hpc.records import TrialResult, to_json
from autoresearch_hpc.report import formats


def write_results_tsv(history: History, path: Path) -> None:
    """One line per judged candidate, in order."""
    lines = [f"commit\t{one_line(history.metric)}\tmemory_gb\tstatus\tdescription"]
    lines += [_result_line(entry) for entry in history.entries() if entry.verdict]
    write_text_atomic(path, "\n".join(lines) + "\n")


def write_trials_csv(history: History, path: Path) -> None:
    """One line per trial that has a result, dropped ones included."""
    columns = [*_columns(TrialResult), "title", "verdict", "dropped"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for entry in history.entries():
        for trial in entry.trials:
            if trial.result is None:
                continue
            row = dict(_flat(to_json(trial.result), columns))
            counts = trial is entry.trial
            row |= {"title": entry.proposal.title, "dropped": trial.dropped}
            row |= {"verdict": str(entry.verdict) if counts and entry.verdict else None}
            writer.writerow(row)
    write_text_atomic(path, text.getvalue())


def one_line(text: str) -> str:
    """Text on one line: white space, line ends and what a terminal would obey become single spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _result_line(entry: Entry) -> str:
    result = entry.result
    commit = entry.candidate.commit[:7] if entry.candidate else ""
    memory = f"{result.peak_vram_mb / 1024:.1f}" if result and result.peak_vram_mb is not None else ""
    description = f"{entry.id}: {one_line(entry.proposal.title)}"
    return "\t".join((commit, formats.value(entry.value), memory, str(entry.verdict), description))


def _columns(record: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of a record's fields, those of optional records inside it too."""
    hints = typing.get_type_hints(record)
    for field in dataclasses.fields(record):
        hint = hints[field.name]
        parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        inner = next((part for part in parts if dataclasses.is_dataclass(part)), None)
        if inner:
            yield from _columns(inner, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def _flat(payload: dict[str, Any], columns: list[str]) -> Iterator[tuple[str, object]]:
    for column in columns:
        value: Any = payload
        for key in column.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            yield column, value
