"""Where each trial's wall time went, as stacked bars in SVG."""

from collections.abc import Sequence
from html import escape

from autoresearch_hpc.records import TrialResult
from autoresearch_hpc.report import formats

_COLOURS = {  # told apart by people who see few colours, and in grey
    "queue": "#d8dbdf",
    "startup": "#f2c14e",
    "compile": "#d98324",
    "training": "#0b6e4f",
    "evaluation": "#5b8fd6",
    "other": "#8a9097",
}
_ROW, _LEFT, _WIDTH, _TOP, _RIGHT = 18, 84, 1000, 52, 90


def phase_bars(results: Sequence[TrialResult]) -> str:
    """One bar a trial on a common scale, with a legend and the sums; hovering tells the seconds."""
    phases = [_seconds(result) for result in results]
    longest = max((sum(p.values()) for p in phases), default=0.0) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / longest
    height = _TOP + _ROW * len(results) + 4
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="time of each trial by phase">']
    parts += _legend(phases)
    for row, (result, seconds) in enumerate(zip(results, phases, strict=True)):
        y = _TOP + row * _ROW
        parts.append(f'<text x="0" y="{y + 11}" fill="#22262b">{escape(result.trial)}</text>')
        x = float(_LEFT)
        for name, length in seconds.items():
            if length > 0:
                width = length * scale
                parts.append(
                    f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_ROW - 4}" fill="{_COLOURS[name]}">'
                    f"<title>{escape(result.trial)}: {name} {formats.duration(length)}</title></rect>"
                )
                x += width
        total = formats.duration(sum(seconds.values()))
        word = "" if result.metric.value is not None else f" {result.status}"
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 11}" fill="#6b7280">{escape(total + word)}</text>')
    return "\n".join([*parts, "</svg>"])


def _seconds(result: TrialResult) -> dict[str, float]:
    p = result.phases
    known = {
        "startup": p.startup_s or 0.0,
        "compile": p.compile_s or 0.0,
        "training": p.train_s or 0.0,
        "evaluation": p.eval_s or 0.0,
    }
    rest = max(0.0, (p.total_s or 0.0) - sum(known.values()))
    return {"queue": p.queue_s or 0.0, **known, "other": rest}


def _legend(phases: Sequence[dict[str, float]]) -> list[str]:
    """Two lines of names: each with its share of all trials' time, waiting in the queue included."""
    total = sum(sum(p.values()) for p in phases) or 1.0
    parts, x = [], float(_LEFT)
    for name, colour in _COLOURS.items():
        share = sum(p[name] for p in phases) / total
        parts.append(f'<rect x="{x:.0f}" y="8" width="11" height="11" fill="{colour}"/>')
        parts.append(f'<text x="{x + 16:.0f}" y="17" fill="#22262b">{name}</text>')
        parts.append(f'<text x="{x + 16:.0f}" y="32" fill="#6b7280">{share:.1%}</text>')
        x += 120
    return parts
