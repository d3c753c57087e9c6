"""report.html: a run in one file, to be read anywhere: no script, no other file, no network.

Everything that comes from a run is escaped: titles, diffs and logs are an agent's or a script's words.
"""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from statistics import median

from autoresearch_hpc import __version__
from autoresearch_hpc.files import write_bytes_atomic
from autoresearch_hpc.gains import Comparison, Gain
from autoresearch_hpc.history import Entry, History
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.records import TrialResult, Verdict
from autoresearch_hpc.report import effect_section, formats, markup
from autoresearch_hpc.report.bars import phase_bars
from autoresearch_hpc.report.settings import Settings
from autoresearch_hpc.report.summary import Summary, summarize
from autoresearch_hpc.report.tables import one_line
from autoresearch_hpc.report.wording import standing

_MAX_DIFF_CHARS = 100_000
_LEGEND = (
    "A candidate's value is the mean over its good trials, with that mean's standard error in brackets. The gain is "
    "against the incumbent of its time, with its 95 % interval; positive is better. Expected is what is left of it "
    "after allowing for its having been picked out for being large. Time is that of all its trials together."
)


def write_report_html(history: History, layout: RunLayout, settings: Settings, path: Path | None = None) -> None:
    """Write the report; the picture in it is the run's progress.png, where there is one."""
    summary = summarize(history, settings)
    title = escape(f"{history.tag}: {history.metric}")
    parts = [
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>',
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style>\n</head>',
        "<body>\n<main>",
        *_header(history, settings, summary),
        *_figures(summary),
        *markup.picture(layout.progress_png, "running best over experiments"),
        *_rounds(summary),
        *(effect_section.section(history.effects, layout.effects_png) if history.effects else ()),
        *_phases(history),
        *_candidates(history, layout),
        "</main>\n</body>\n</html>\n",
    ]
    write_bytes_atomic(path or layout.report_html, "\n".join(parts).encode(errors="replace"))


def _header(history: History, settings: Settings, summary: Summary) -> Iterator[str]:
    yield f"<h1>{escape(history.tag)}</h1>"
    if settings.description:
        yield f'<p class="lead">{escape(settings.description)}</p>'
    ended = history.stopped or (history.interrupted and f"interrupted by {history.interrupted}") or "not finished"
    facts = [
        ("plan", settings.plan),
        ("agent", settings.agent),
        ("cluster", settings.cluster),
        ("started", _minute(history.started_at)),
        ("last event", _minute(history.last_at)),
        ("from commit", history.start_commit[:7]),
        ("best commit", summary.best_commit[:7] if summary.best_commit else ""),
        ("state", ended),
        ("autoresearch_hpc", __version__),
    ]
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in facts if text)
    yield f'<dl class="facts">{cells}</dl>'


def _figures(summary: Summary) -> Iterator[str]:
    gain = summary.over_baseline
    baseline = formats.count(summary.baseline_trials, "trial")
    behind = standing(summary.best_candidate, summary.best_trials, summary.noise) if summary.best_candidate else ""
    cost = f", {formats.usd(summary.cost_usd)}" if summary.cost_usd is not None else ""
    failed = summary.num_failed
    figures = [
        (f"best {summary.metric}", formats.value(summary.best, "none"), behind),
        (
            "better by",
            formats.difference(gain.value) if gain else "not compared" if summary.moved else "none",
            f"baseline {formats.value(summary.baseline, 'none')}, {baseline}",
        ),
        *_belief(gain),
        ("experiments", str(summary.num_experiments), f"{failed} failed, {formats.count(summary.num_trials, 'trial')}"),
        (
            "wall time",
            formats.duration(summary.active_s),
            f"one after another: {formats.duration(summary.sequential_s)}",
        ),
        ("speed-up", f"{summary.speed_up:.1f}x" if summary.speed_up else "none", "against one after another"),
        (
            "GPU time" if summary.gpu_s else "trial time",
            formats.hours(summary.trial_s),
            (f"{summary.useful:.0%} of it training" if summary.useful is not None else "") + cost,
        ),
        *_pauses(summary),
    ]
    cards = "".join(
        f'<div><span class="name">{escape(name)}</span><b>{escape(text)}</b><span>{escape(note)}</span></div>'
        for name, text, note in figures
    )
    yield f'<section class="figures">{cards}</section>'


def _pauses(summary: Summary) -> Iterator[tuple[str, str, str]]:
    """How long GPUs waited between rounds, and what the agent's calls came to."""
    if summary.pauses:
        total, thought = (median(getattr(p, name) for p in summary.pauses) for name in ("total_s", "thought_s"))
        yield "between rounds", f"{total:.1f} s", f"from the last result to the next array, {thought:.1f} s the agent's"
    if thinking := summary.thinking:
        tokens = f"{thinking.prompt_tokens:,} + {thinking.answer_tokens:,} tokens" if thinking.prompt_tokens else ""
        yield "agent's calls", str(thinking.num_calls), ", ".join(filter(None, (tokens, f"${thinking.usd:,.4f}")))


def _belief(gain: Gain | None) -> Iterator[tuple[str, str, str]]:
    """How much of a gain is to be believed."""
    if gain is None:
        return
    if gain.expected is not None and gain.expected_margin is not None:
        observed = f"observed {gain.words}"
        yield "expected gain", formats.difference(gain.expected), f"± {gain.expected_margin:.6f}; {observed}"
    else:
        yield "expected gain", "unknown", gain.words


def _rounds(summary: Summary) -> Iterator[str]:
    yield "<h2>Rounds</h2>"
    best = f"best {summary.metric}"
    head = ["round", "base", "K", "ok", "failed", "trials", best, "gain", "expected", "verdict", "candidate", "title"]
    number = {0, *range(2, 9)}
    rows = []
    for row in summary.rounds:
        cells = [
            str(row.index),
            row.base,
            str(row.num_candidates),
            str(row.num_ok),
            str(row.num_failed),
            str(row.num_trials),
            formats.value(row.best, "none"),
            *_gain(row.finding),
            row.verdict,
            row.best_candidate or "",
            row.title,
        ]
        rows.append(markup.row(cells, number, css="keep" if row.winner else ""))
    yield markup.table(head, rows, number)


def _phases(history: History) -> Iterator[str]:
    results = list(history.results())
    if any(result.phases.total_s for result in results):
        yield "<h2>Where the time went</h2>"
        yield f'<div class="bars">{phase_bars(results)}</div>'


def _candidates(history: History, layout: RunLayout) -> Iterator[str]:
    yield "<h2>Candidates</h2>"
    yield f"<p>{escape(_LEGEND)}</p>"
    head = ["candidate", history.metric, "trials", "gain", "expected", "verdict", "status", "title and edit"]
    head += ["memory", "time", "GPU"]
    number = {1, 2, 3, 4, 8, 9}
    rows = []
    for entry in history.entries():
        result = entry.result
        plain = [entry.id, _mean(history, entry), str(len(entry.values)), *_gain(entry.finding)]
        plain += [_verdict(entry), str(result.status) if result else "no result"]
        total_s = sum(each.phases.total_s or 0.0 for each in entry.results)
        facts = [_memory(result), formats.clock(total_s) if result else "", _gpu(result)]
        cells = [*(escape(cell) for cell in plain), _details(entry, layout), *(escape(fact) for fact in facts)]
        css = "keep" if entry.verdict is Verdict.KEEP else "failed" if result and entry.value is None else ""
        rows.append(markup.row(cells, number, css, escaped=True))
    yield markup.table(head, rows, number)


def _mean(history: History, entry: Entry) -> str:
    error = history.standard_error(entry)
    return formats.value(entry.value, "none") + (f" ({error:.6f})" if error is not None else "")


def _gain(finding: Comparison | None) -> tuple[str, str]:
    """Two cells: the gain as observed, and what is expected of it."""
    gain = finding.gain if finding else None
    if gain is None:
        return "", ""
    return gain.words, f"{gain.expected:+.6f}" if gain.expected is not None else ""


def _verdict(entry: Entry) -> str:
    """The verdict, and what it says too little of: a near miss, a candidate that was not compared."""
    if entry.verdict is None:
        return "not judged"
    call = entry.finding.call if entry.finding else ""
    told = entry.verdict is Verdict.CRASH or call in ("", "promote", "discard")
    return str(entry.verdict) if told else f"{entry.verdict}, {call}"


def _details(entry: Entry, layout: RunLayout) -> str:
    """The candidate's title; behind it the reasons, the error and the diff."""
    title = escape(one_line(entry.proposal.title) or entry.id)
    parts = []
    about = [f"proposed by {entry.proposal.origin}"] if entry.proposal.origin else []
    if entry.proposal.on:
        about.append(f"builds on {entry.proposal.on}")
    if entry.candidate:
        about.append(f"commit {entry.candidate.commit[:7]} on {entry.candidate.parent[:7]}")
    if entry.finding:
        about.append(entry.finding.words)
    if len(entry.results) > 1:
        values = (formats.value(r.metric.value, str(r.status)) for r in entry.results)
        about.append(f"trials: {', '.join(values)}")
    about += [f"trial {trial.id} dropped: {trial.dropped}" for trial in entry.trials if trial.dropped]
    if about:
        parts.append(f"<p>{escape('; '.join(about))}</p>")
    if entry.proposal.reasoning:
        parts.append(f"<p>{escape(entry.proposal.reasoning)}</p>")
    if entry.result and entry.result.error:
        error = entry.result.error
        parts.append(f"<p>{escape(error.type)}: {escape(error.message)}</p>")
        if error.tail:
            parts.append(f"<pre>{escape(error.tail)}</pre>")
    if diff := _diff(layout.diff(entry.id)):
        parts.append(diff)
    return f"<details><summary>{title}</summary>{''.join(parts)}</details>" if parts else title


def _diff(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    left_out = len(text) - _MAX_DIFF_CHARS
    lines = []
    for line in text[:_MAX_DIFF_CHARS].splitlines():
        css = "ins" if line.startswith("+") and not line.startswith("+++ ") else ""
        css = "del" if line.startswith("-") and not line.startswith("--- ") else css
        lines.append(f'<span class="{css}">{escape(line)}</span>' if css else escape(line))
    if left_out > 0:
        lines.append(f"({left_out:,} characters more in {escape(path.name)})")
    text = "\n".join(lines)
    return f"<pre>{text}</pre>" if text else ""


def _memory(result: TrialResult | None) -> str:
    return f"{result.peak_vram_mb / 1024:.1f} GB" if result and result.peak_vram_mb is not None else ""


def _gpu(result: TrialResult | None) -> str:
    return result.gpu.name or "" if result else ""


def _minute(at: str | None) -> str:
    return f"{at[:10]} {at[11:16]} UTC" if at else ""


_STYLE = """
:root { --text: #22262b; --faint: #6b7280; --line: #e3e5e8; --good: #0b6e4f; --bad: #b23a48 }
* { box-sizing: border-box }
body { margin: 0; background: #fff; color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
main { max-width: 1280px; margin: 0 auto; padding: 32px 24px 64px }
h1 { margin: 0; font-size: 26px; overflow-wrap: anywhere } h2 { margin: 40px 0 12px; font-size: 18px }
.lead { margin: 4px 0 0; color: var(--faint) }
.facts { display: flex; flex-wrap: wrap; gap: 4px 24px; margin: 16px 0 0; font-size: 13px }
.facts dt, .facts dd { display: inline; margin: 0 } .facts dt { color: var(--faint); margin-right: 6px }
.facts dd { font-weight: 600; overflow-wrap: anywhere }
.figures { display: flex; flex-wrap: wrap; gap: 1px; margin: 24px 0;
  background: var(--line); border: 1px solid var(--line) }
.figures div { display: flex; flex-direction: column; flex: 1 1 155px; box-sizing: border-box; padding: 12px 14px;
  background: #fff; font-size: 12px; color: var(--faint) }
.figures b { font-size: 20px; line-height: 1.4; color: var(--text); font-variant-numeric: tabular-nums }
.progress { width: 100%; height: auto }
.scroll { overflow-x: auto }
table { width: 100%; border-collapse: collapse; font-size: 13.5px }
th, td { padding: 6px 10px 6px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th { color: var(--faint); font-weight: 500; white-space: nowrap }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; padding-right: 18px }
tr.keep td { font-weight: 600; color: var(--good) } tr.keep details * { color: var(--text) }
tr.failed td:nth-child(7) { color: var(--bad) }
td:nth-child(1) { white-space: nowrap }
details { font-weight: 400 } .bars { max-height: 640px; overflow: auto }
tr.keep summary { font-weight: 600 } summary { cursor: pointer }
details p { margin: 8px 0; color: var(--faint) }
pre { margin: 8px 0; padding: 10px 12px; max-height: 480px; overflow: auto; background: #f6f7f8; font-size: 12px;
  line-height: 1.45 }
pre .ins, tr.keep pre .ins { color: var(--good) } pre .del, tr.keep pre .del { color: var(--bad) }
svg { width: 100%; height: auto; font: 11px system-ui, "DejaVu Sans", sans-serif }
"""
