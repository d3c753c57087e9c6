"""results.tsv, candidates.csv, trials.csv and effects.csv: a run's outcome for spreadsheets and scripts.

results.tsv is karpathy/autoresearch's: `commit val_bpb memory_gb status description`, tab separated, one judged
candidate a line; a failed one has no value, never 0.0. trials.csv has one line for every trial and a column for
every field of result.json, nested ones with dots (`phases.train_s`).

candidates.csv has one line for every candidate, judged or not. `value` is the mean over its `num_trials` good trials,
`standard_error` that mean's, by the noise of the whole run. What follows is as it was judged: `gain` against the
incumbent of that time (positive is better, whatever the metric's direction) with its 95 % interval, the chance `p` of
so large a gain for any of `k` candidates if none were better, the gain that is `expected` of it after it was picked
out, with its own 95 % interval, and the `call`. Empty is what is not known.

effects.csv has one line for every term of the model of all results (`estimates`): by how much the metric changes when
the term's knobs go from their low to their high setting, with its 95 % interval and the chance of so large an effect
if there were none. `aliases` are terms that the trials could not tell from it.
"""

import csv
import dataclasses
import functools
import io
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from autoresearch_hpc.estimates import Effect, Effects, Term
from autoresearch_hpc.files import write_text_atomic
from autoresearch_hpc.gains import Comparison
from autoresearch_hpc.history import Entry, History, Round, Trial
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.records import TrialResult
from autoresearch_hpc.report import formats

_CANDIDATE_COLUMNS = (
    *("candidate", "round", "commit", "verdict", "num_trials", "value", "standard_error"),
    *("gain", "gain_low", "gain_high", "p", "k", "expected", "expected_low", "expected_high", "call", "title"),
)

_EFFECT_COLUMNS = ("effect", "term", "low", "high", "estimate", "estimate_low", "estimate_high", "p", "aliases")


class Tables:
    """The tables of one run, written again after every round. What has not changed of a candidate is told as before."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Entry, int, _Told]] = {}

    def write(self, history: History, layout: RunLayout) -> None:
        """results.tsv, candidates.csv and trials.csv; effects.csv once effects of knobs are known."""
        told = [self._told(round_, entry) for round_ in history.rounds for entry in round_.entries.values()]
        head = f"commit\t{one_line(history.metric)}\tmemory_gb\tstatus\tdescription\n"
        write_text_atomic(layout.results_tsv, "".join([head, *(each.result for each in told)]))
        errors: dict[int, str] = {}  # of means over so many trials
        noise = history.noise
        for number in {each.num_trials for each in told}:
            errors[number] = formats.difference(noise.standard_error(number) if noise else None)
        lines = (f"{each.before_error}{errors[each.num_trials]}{each.after_error}" for each in told)
        write_text_atomic(layout.candidates_csv, "".join([_line(_CANDIDATE_COLUMNS), *lines]))
        head = _line([*_columns(TrialResult), "title", "verdict", "dropped"])
        write_text_atomic(layout.trials_csv, "".join([head, *(each.trials for each in told)]))
        if history.effects:
            write_effects_csv(history.effects, layout.effects_csv)

    def _told(self, round_: Round, entry: Entry) -> "_Told":
        known = self._known.get(entry.id)
        if known and known[0] is entry and known[1] == entry.version:
            return known[2]
        told = _Told.of(round_, entry)
        self._known[entry.id] = entry, entry.version, told
        return told


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """A candidate's lines. The standard error in candidates.csv is by the noise of the whole run, so it is left out."""

    result: str  # of results.tsv, once it is judged
    before_error: str
    after_error: str
    num_trials: int
    trials: str

    @classmethod
    def of(cls, round_: Round, entry: Entry) -> "_Told":
        row = _candidate_row(round_, entry)
        cells = [row.get(column, "") for column in _CANDIDATE_COLUMNS]
        error = _CANDIDATE_COLUMNS.index("standard_error")
        return cls(
            result=f"{_result_line(entry)}\n" if entry.verdict else "",
            before_error=_line(cells[:error]).removesuffix("\n") + ",",
            after_error="," + _line(cells[error + 1 :]),
            num_trials=len(entry.values),
            trials="".join(_trial_line(entry, trial) for trial in entry.trials if trial.result),
        )


def _trial_line(entry: Entry, trial: Trial) -> str:
    verdict = entry.verdict if trial.dropped is None else None
    return _line([*_cells(TrialResult, trial.result), entry.proposal.title, verdict, trial.dropped])


def _line(cells: Iterable[object]) -> str:
    """Of a CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def write_effects_csv(effects: Effects, path: Path) -> None:
    """One line per term, the surest first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _EFFECT_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for effect in effects.by_size:
        low, high = ends(effects, effect)
        row = {"effect": effect.name, "term": str(effect.term), "low": low, "high": high}
        row |= {"p": "" if effect.p is None else f"{effect.p:.6f}", "aliases": " ".join(effect.aliases)}
        writer.writerow(row | _interval("estimate", effect.estimate, effect.margin))
    write_text_atomic(path, text.getvalue())


def ends(effects: Effects, effect: Effect) -> tuple[str, str]:
    """The low and the high setting of a main effect; nothing of others, whose factors have lines of their own."""
    if effect.term is not Term.main:
        return "", ""
    factor = effects.of_factors[effect.factors[0]]
    return one_line(factor.low), one_line(factor.high)


def one_line(text: str) -> str:
    """Text on one line: white space, line ends and what a terminal would obey become single spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _result_line(entry: Entry) -> str:
    result = entry.result
    commit = entry.candidate.commit[:7] if entry.candidate else ""
    memory = f"{result.peak_vram_mb / 1024:.1f}" if result and result.peak_vram_mb is not None else ""
    description = f"{entry.id}: {one_line(entry.proposal.title)}"
    return "\t".join((commit, formats.value(entry.value), memory, str(entry.verdict), description))


def _candidate_row(round_: Round, entry: Entry) -> dict[str, object]:
    found = entry.finding or Comparison(call="")
    row: dict[str, object] = {
        "candidate": entry.id,
        "round": round_.index,
        "commit": entry.candidate.commit[:7] if entry.candidate else "",
        "verdict": str(entry.verdict or ""),
        "num_trials": len(entry.values),
        "value": formats.value(entry.value),
        "p": "" if found.p is None else f"{found.p:.6f}",
        "k": found.k or "",
        "call": found.call,
        "title": one_line(entry.proposal.title),
    }
    if gain := found.gain:
        row |= _interval("gain", gain.value, gain.margin) | _interval("expected", gain.expected, gain.expected_margin)
    return row


def _interval(name: str, middle: float | None, margin: float | None) -> dict[str, object]:
    row: dict[str, object] = {name: formats.difference(middle)}
    if middle is not None and margin is not None:
        row |= {f"{name}_low": formats.difference(middle - margin), f"{name}_high": formats.difference(middle + margin)}
    return row


def _columns(record: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of a record's fields, those of optional records inside it too."""
    for name, inner in _fields(record):
        if inner:
            yield from _columns(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _cells(record: Any, value: object) -> Iterator[object]:
    """What stands in these columns; nothing in those of a record that is not there."""
    for name, inner in _fields(record):
        field = getattr(value, name, None)
        if inner:
            yield from _cells(inner, field)
        else:
            yield field


@functools.cache
def _fields(record: Any) -> tuple[tuple[str, Any], ...]:
    """A record's fields, each with the record that it holds, if it holds one."""
    hints, found = typing.get_type_hints(record), []
    for field in dataclasses.fields(record):
        hint = hints[field.name]
        parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        found.append((field.name, next((part for part in parts if dataclasses.is_dataclass(part)), None)))
    return tuple(found)
