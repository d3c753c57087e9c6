"""Verdicts: pure functions from a round's results to what is kept.

A rule sees the incumbent and the round's entries and returns one Judgement. Rules are looked up by name
(`decide.rule`), so another one is a function and a line in `RULES`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autoresearch_hpc.config import DecideConfig
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.records import Direction, Status, Verdict

__all__ = ["RULES", "Entry", "Judgement", "Rule", "Standing", "find", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The incumbent: a candidate and the value it earned."""

    candidate: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one candidate brings to its round's judgement. Raises ValueError where status and value contradict."""

    candidate: str
    status: Status
    value: float | None
    diff_lines: int = 0
    baseline: bool = False

    def __post_init__(self) -> None:
        measured = self.value is not None and math.isfinite(self.value)
        if measured != (self.status is Status.OK):
            raise ValueError(f"{self.candidate}: status {self.status} with value {self.value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict for every entry and where the run stands afterwards; None after a baseline that failed.

    `winner` is the candidate that this round put in the incumbent's place, None where nothing changed.
    """

    verdicts: Mapping[str, Verdict]
    standing: Standing | None
    winner: str | None


Rule = Callable[[Direction, Standing | None, Sequence[Entry], DecideConfig], Judgement]


def judge(
    direction: Direction, incumbent: Standing | None, entries: Sequence[Entry], config: DecideConfig
) -> Judgement:
    """The judgement of the configured rule.

    Without an incumbent one entry must be the baseline: it becomes the incumbent that the others have to beat.
    """
    return find(config.rule)(direction, incumbent, entries, config)


def find(name: str) -> Rule:
    """The rule of that name. Raises ConfigError listing the known ones."""
    if name not in RULES:
        raise ConfigError(f"decide.rule={name} is unknown", f"the rules are {', '.join(sorted(RULES))}")
    return RULES[name]


def _best(
    direction: Direction, incumbent: Standing | None, entries: Sequence[Entry], config: DecideConfig
) -> Judgement:
    """The best OK candidate that beats the incumbent by min_delta; ties go to the smaller diff, then the lower id."""
    verdicts = {e.candidate: Verdict.DISCARD if e.status is Status.OK else Verdict.CRASH for e in entries}
    winner: str | None = None
    if incumbent is None:
        baseline = next((entry for entry in entries if entry.baseline), None)
        if baseline is None:
            raise ValueError("a first round without a baseline")
        if baseline.value is None:
            return Judgement(verdicts=verdicts, standing=None, winner=None)
        incumbent = Standing(candidate=baseline.candidate, value=baseline.value)
        winner = baseline.candidate
        verdicts[winner] = Verdict.KEEP
    best: Entry | None = None
    for entry in sorted(entries, key=_tie_break):
        if entry.value is None or entry.candidate == incumbent.candidate:
            continue
        ahead = best is None or direction.better(entry.value, best.value or 0.0)
        if ahead and _beats(direction, entry.value, incumbent.value, config.min_delta):
            best = entry
    if best is not None and best.value is not None:
        winner = best.candidate
        verdicts[winner] = Verdict.KEEP
        incumbent = Standing(candidate=winner, value=best.value)
    return Judgement(verdicts=verdicts, standing=incumbent, winner=winner)


def _beats(direction: Direction, value: float, incumbent: float, min_delta: float) -> bool:
    """Strictly better, and by min_delta as people count it: 0.999 beats 1.0 by 0.001 whatever binary floats say."""
    gain = round(abs(value - incumbent), 12)
    return direction.better(value, incumbent) and gain >= min_delta


def _tie_break(entry: Entry) -> tuple[int, int, str]:
    return entry.diff_lines, len(entry.candidate), entry.candidate  # by length first: c100 comes after c99


RULES: dict[str, Rule] = {"best": _best}
