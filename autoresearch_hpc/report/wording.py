"""A summary as people read it in terminals and logs: the table of rounds, and the lines below it.

What was gained is never said without what is known of its noise.
"""

import io
from collections.abc import Iterator, Mapping
from statistics import median

from rich.console import Console, Group, RenderableType
from rich.text import Text

from autoresearch_hpc.gains import Noise
from autoresearch_hpc.records import Status
from autoresearch_hpc.report import formats
from autoresearch_hpc.report.columns import Columns
from autoresearch_hpc.report.summary import Figures, RoundSummary, Summary

_MAX_KEPT_SHOWN = 8


def table(summary: Summary) -> Columns:
    """The table of rounds, for a terminal of 80 columns or more."""
    head = ("round", "base", "K", "ok/failed", f"best {summary.metric}", "verdict", "title")
    rows = [[Text(cell) for cell in _cells(row)] for row in summary.rounds]
    winners = [index for index, row in enumerate(summary.rounds) if row.winner]
    return Columns(head=head, rows=rows, right={0, 2, 3, 4}, bold=winners)


def lines(summary: Summary, where: Mapping[str, str] | None = None) -> list[str]:
    """What stands below the table. `where` maps a name to the place of a file: results.tsv, progress.png, ..."""
    return list(_lines(summary, where or {}))


def render_text(summary: Summary, where: Mapping[str, str] | None = None) -> str:
    """Table and lines as plain text, for logs."""
    console = Console(width=100, file=io.StringIO(), color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(table(summary))
    rows = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join([*rows, "", *lines(summary, where)])


def render(summary: Summary, where: Mapping[str, str] | None = None) -> RenderableType:
    """Table and lines for rich's console."""
    return Group(table(summary), Text(), Text("\n".join(lines(summary, where)), overflow="fold"))


def standing(candidate: str, num_trials: int, noise: Noise | None) -> str:
    """What stands behind a value: `r02-c02, 6 trials, noise 0.000512`, the noise being that of a single trial."""
    spread = f", noise {formats.difference(noise.sd)}" if noise else ""
    return f"{candidate}, {formats.count(num_trials, 'trial')}{spread}"


def kept_lines(summary: Figures, most: int) -> Iterator[tuple[str, str]]:
    """The newest winners and their gains, in order; of those whose noise was unknown there is nothing to say."""
    known = [(id_, gain) for id_, gain in summary.kept if gain.margin is not None]
    if len(known) > most:
        yield "kept", f"{formats.count(len(known) - most, 'candidate')} before these"
    for id_, gain in known[-most:]:
        expected = f", expected {gain.expected:+.6f}" if gain.expected is not None else ""
        yield f"kept {id_}", f"{gain.words}{expected}"


def pause_lines(summary: Summary) -> Iterator[str]:
    """How long GPUs waited between rounds, and what the agent's calls came to."""
    if summary.pauses:
        totals, thoughts = [p.total_s for p in summary.pauses], [p.thought_s for p in summary.pauses]
        yield (
            f"between rounds: {median(totals):.1f} s without a trial, "
            f"{median(thoughts):.1f} s of it the agent's; at most {max(totals):.1f} s"
        )
    if thinking := summary.thinking:
        tokens = f", {thinking.prompt_tokens:,} + {thinking.answer_tokens:,} tokens" if thinking.prompt_tokens else ""
        cost = f", ${thinking.usd:,.4f}" if thinking.usd else ""
        yield f"agent: {formats.count(thinking.num_calls, 'call')}{tokens}{cost}"


def _cells(row: RoundSummary) -> tuple[str, ...]:
    return (
        str(row.index),
        row.base,
        str(row.num_candidates),
        f"{row.num_ok}/{row.num_failed}",
        formats.value(row.best, "-"),
        row.verdict,
        f"{row.best_candidate}: {row.title}" if row.title else "",
    )


def _lines(summary: Summary, where: Mapping[str, str]) -> Iterator[str]:
    name = f"best {summary.metric}"
    if summary.best is None or summary.best_candidate is None:
        yield f"{name}  none yet"
    else:
        found = list(_found(summary))
        width = max(len(name), *(len(label) for label, _ in found)) if found else len(name)
        commit = f", commit {summary.best_commit[:7]}" if summary.best_commit else ""
        behind = standing(summary.best_candidate, summary.best_trials, summary.noise)
        yield f"{name:<{width}}  {formats.value(summary.best)}  {behind}{commit}"
        yield from (f"{label:<{width}}  {words}" for label, words in found)
    counts = f"{formats.count(summary.num_experiments, 'experiment')}, {summary.num_failed} failed"
    if summary.num_failed:
        words = (f"{n} {status}" for status, n in sorted(summary.statuses.items()) if status is not Status.OK)
        counts += f" ({', '.join(words)})"
    yield f"{counts}; {formats.count(summary.num_trials, 'trial')}"
    pause = summary.elapsed_s - summary.active_s
    paused = f" ({formats.duration(summary.elapsed_s)} with interruptions)" if pause > 1 else ""
    yield f"wall time: {formats.duration(summary.active_s)}{paused}"
    kind = "GPU time" if summary.gpu_s > 0 else "trial time (no GPU)"
    useful = f", {summary.useful:.0%} of it training" if summary.useful is not None else ""
    cost = f", {formats.usd(summary.cost_usd)}" if summary.cost_usd is not None else ""
    yield f"{kind}: {formats.hours(summary.gpu_s or summary.trial_s)}{useful}{cost}"
    if summary.busy is not None:
        yield f"slots: {summary.num_slots}, busy {summary.busy:.0%} of the wall time"
    for use in summary.tiers:
        cost = f", {formats.usd(use.cost_usd)}" if use.cost_usd is not None else ""
        yield f"on {use.tier}: {formats.count(use.num_trials, 'trial')}, {formats.hours(use.trial_s)}{cost}"
    if summary.speed_up is not None:
        yield (
            f"the same trials one after another: {formats.duration(summary.sequential_s)}; "
            f"speed-up {summary.speed_up:.1f}x"
        )
    yield from pause_lines(summary)
    width = max((len(name) for name in where), default=0)
    for name, place in where.items():
        yield f"{name:<{width}}  {place}"


def _found(summary: Summary) -> Iterator[tuple[str, str]]:
    """What was gained, and how much of that is to be believed."""
    if not summary.moved:
        return
    trials, gain = formats.count(summary.baseline_trials, "trial"), summary.over_baseline
    share = f" ({gain.value / abs(summary.baseline):.2%})" if gain and summary.baseline else ""
    better = "never run on the same kind of GPU and data as the best"
    if gain:
        margin = f" ± {gain.margin:.6f}{share}" if gain.margin is not None else f"{share}, noise unknown"
        better = f"better by {formats.difference(gain.value)}{margin}"
    yield "baseline", f"{formats.value(summary.baseline)}  {trials}; {better}"
    if gain and gain.expected is not None and gain.expected_margin is not None:
        low, high = gain.expected - gain.expected_margin, gain.expected + gain.expected_margin
        interval = f"({formats.difference(low)} to {formats.difference(high)})"
        yield "expected gain", f"{formats.difference(gain.expected)}  {interval}, less the luck of being picked"
    yield from kept_lines(summary, _MAX_KEPT_SHOWN)
