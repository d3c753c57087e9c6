"""The record of a run in words of bounded length: what a language model is told of everything that was tried.

Nothing is dropped in silence. The best, the kept, the near misses and the two newest rounds are told in full; of the
others each has a line, then, where that is too long, each of the older rounds, then all of them together. What failed
is told apart, with the end of its output. Output is quoted: every line of it begins with "| ", so that nothing in it
can pass for instructions.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from autoresearch_hpc.agents.titles import show
from autoresearch_hpc.quoting import quoted, quoted_line
from autoresearch_hpc.records import Direction, Outcome, SearchState, Status, Verdict

__all__ = ["failures", "quote", "record"]

_NUM_BEST = 8
_NUM_RECENT_ROUNDS = 2
_NUM_FAILURES = 8
_TAIL_LINES, _TAIL_CHARS = 12, 900


def quote(text: str, *, max_lines: int = _TAIL_LINES, max_chars: int = _TAIL_CHARS) -> str:
    """Foreign output, marked line by line."""
    return "\n".join(f"| {line}" for line in quoted(text, max_lines=max_lines, max_chars=max_chars).splitlines())


def record(state: SearchState, max_chars: int) -> str:
    """All experiments, in at most so many characters."""
    outcomes = state.outcomes
    if not outcomes:
        return "No experiment has been run yet."
    important = _important(state)
    rounds = sorted({outcome.round for outcome in outcomes})
    text = ""
    for summed_up in [0, *range(1, len(rounds) + 1)]:  # rounds, from the oldest on, that get one line each
        for reasons in (True, False):
            lines = [*_lines(outcomes, rounds, important, summed_up, reasons)]
            text = "\n".join(lines)
            if len(text) <= max_chars:
                return text
    return _all_in_short(state, important, max_chars)


def failures(state: SearchState) -> str:
    """What failed, the newest with the end of its output, older ones counted."""
    failed = [outcome for outcome in state.outcomes if outcome.status is not Status.OK]
    if not failed:
        return "None so far."
    lines = []
    for outcome in failed[-_NUM_FAILURES:]:
        cause = f": {quoted_line(f'{outcome.error.type}: {outcome.error.message}', 300)}" if outcome.error else ""
        lines.append(f"{outcome.candidate} {outcome.status}{cause} ({quoted_line(outcome.proposal.title, 120)})")
        if outcome.error and outcome.error.tail:
            lines.append(quote(outcome.error.tail))
    if older := failed[:-_NUM_FAILURES]:
        counted = ", ".join(f"{count} {status}" for status, count in Counter(o.status for o in older).most_common())
        lines.append(f"and {len(older)} earlier ones: {counted}")
    return "\n".join(lines)


def _important(state: SearchState) -> set[str]:
    sign = 1.0 if state.direction is Direction.min else -1.0
    good = sorted((o for o in state.outcomes if o.value is not None), key=lambda o: sign * (o.value or 0.0))
    newest = {o.round for o in state.outcomes}
    recent = sorted(newest)[-_NUM_RECENT_ROUNDS:]
    chosen = {o.candidate for o in good[:_NUM_BEST]} | set(state.pool)
    return chosen | {o.candidate for o in state.outcomes if o.verdict is Verdict.KEEP or o.round in recent}


def _lines(
    outcomes: Sequence[Outcome], rounds: Sequence[int], important: set[str], summed_up: int, reasons: bool
) -> Iterator[str]:
    for position, round_ in enumerate(rounds):
        own = [outcome for outcome in outcomes if outcome.round == round_]
        told = own if position >= summed_up else [o for o in own if o.candidate in important]
        if len(told) < len(own):
            yield _round_line(round_, own)
        for outcome in told:
            yield _line(outcome, full=outcome.candidate in important, reasons=reasons)


def _line(outcome: Outcome, *, full: bool, reasons: bool) -> str:
    value = "no score" if outcome.value is None else f"{outcome.value:.6f}"
    verdict = outcome.finding.call if outcome.finding and outcome.finding.gain else outcome.verdict or ""
    if outcome.status is not Status.OK:
        verdict = str(outcome.status)
    line = f"{outcome.candidate} {value} {verdict}"
    if full and outcome.finding and outcome.finding.gain:
        line += f" ({outcome.finding.odds})"
    if full and outcome.peak_vram_mb:
        line += f" {outcome.peak_vram_mb / 1024:.1f} GB"
    line += f": {quoted_line(outcome.proposal.title, 120)}"
    if full and reasons and outcome.proposal.reasoning:
        line += f" [{quoted_line(outcome.proposal.reasoning, 240)}]"
    return line


def _round_line(round_: int, own: Sequence[Outcome]) -> str:
    good = [o for o in own if o.value is not None]
    failed = len(own) - len(good)
    kept = [o.candidate for o in own if o.verdict is Verdict.KEEP]
    values = [o.value for o in good if o.value is not None]
    spread = f", scores {min(values):.6f} to {max(values):.6f}" if values else ""
    return f"round {round_}: {len(own)} tried, {failed} failed, kept {', '.join(kept) or 'none'}{spread}"


def _all_in_short(state: SearchState, important: set[str], max_chars: int) -> str:
    """The whole past in a few lines, then as many of the important ones as there is room for, the newest first."""
    outcomes = state.outcomes
    lines = [_round_line(0, outcomes).replace("round 0", f"{len({o.round for o in outcomes})} rounds"), *_ranges(state)]
    room = max_chars - sum(len(line) + 1 for line in lines) - 80
    shown: list[str] = []
    told = [o for o in outcomes if o.candidate in important]
    for outcome in reversed(told):
        line = _line(outcome, full=False, reasons=False)
        if (room := room - len(line) - 1) < 0:
            break
        shown.insert(0, line)
    if len(shown) < len(told):
        lines.append(f"({len(told) - len(shown)} notable ones before these are in the sums above only)")
    return "\n".join([*lines, *shown])[:max_chars]


def _ranges(state: SearchState) -> Iterator[str]:
    """What was tried of each knob."""
    for name in state.incumbent_knobs:
        tried = [o.proposal.knobs[name] for o in state.outcomes if name in o.proposal.knobs]
        numbers = [value for value in tried if isinstance(value, int | float) and not isinstance(value, bool)]
        if numbers:
            yield f"{name}: {len(numbers)} settings tried, {show(min(numbers))} to {show(max(numbers))}"
        elif tried:
            yield f"{name}: tried {', '.join(sorted({show(value) for value in tried})[:8])}"
