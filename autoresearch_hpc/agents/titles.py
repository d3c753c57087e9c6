"""One line for people about an edit: what results.tsv and the commit say."""

from autoresearch_hpc.records import Knobs, KnobValue

__all__ = ["changes", "show"]


def changes(knobs: Knobs, before: Knobs) -> str:
    """The settings that differ from `before`: "MATRIX_LR 0.04 -> 0.05, DEPTH 8 -> 10"; empty where none does."""
    words = []
    for name, value in knobs.items():
        if name not in before:
            words.append(f"{name}={show(value)}")
        elif before[name] != value:
            words.append(f"{name} {show(before[name])} -> {show(value)}")
    return ", ".join(words)


def show(value: KnobValue) -> str:
    """A value as people write it; large powers of two as such."""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return f"({', '.join(show(item) for item in value)})"
    if type(value) is int and value >= 4096 and value & (value - 1) == 0:
        return f"2**{value.bit_length() - 1}"
    return repr(value)
