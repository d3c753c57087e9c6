"""Numbers as people read them: metric values with six decimals, durations, money."""


def value(number: float | None, none: str = "") -> str:
    """A metric's value: six decimals, always; one so small that they would be zeros as 1.234567e-09."""
    if number is None:
        return none
    return f"{number:.6e}" if 0 < abs(number) < 1e-4 else f"{number:.6f}"


def difference(number: float | None, none: str = "") -> str:
    """Between two values: six decimals."""
    return none if number is None else f"{number:.6f}"


def odds(p: float | None) -> str:
    """A p-value: 0.0123, <0.0001; nothing where it is unknown."""
    if p is None:
        return ""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def duration(seconds: float | None) -> str:
    """12 s, 3 min 05 s, 2 h 07 min."""
    if seconds is None:
        return "unknown"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def clock(seconds: float | None) -> str:
    """2:05, 1:02:05: for columns."""
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def hours(seconds: float) -> str:
    """GPU time as hours: 0.42 h, 12.5 h; as seconds where that would be nothing."""
    if seconds < 36:
        return duration(seconds)
    return f"{seconds / 3600:.2f} h" if seconds < 36_000 else f"{seconds / 3600:.1f} h"


def usd(amount: float) -> str:
    return f"${amount:,.2f}"


def count(number: int, noun: str) -> str:
    """1 trial, 4 trials."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
