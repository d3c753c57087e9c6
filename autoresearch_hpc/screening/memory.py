"""Whether an edit fits into a GPU's memory, told from what was measured before it and how its needs have grown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BEYOND = 1.2  # times the GPU's memory: the estimate is a rough one, and a wrong refusal costs more than a trial
# For each byte of parameters one of gradients and two of optimizer state: AdamW's two averages, the most that common
# optimizers keep.
BYTES_BESIDE_PARAMETERS = 3
_MB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMemory:
    """What a script was seen to need of its GPU at its peak, and what that GPU has, both in MB of 2**20 bytes."""

    peak_mb: float
    total_mb: float


def estimate(shapes: Mapping[str, Any] | None) -> float | None:
    """Bytes that a step takes, as far as shapes tell: parameters, what goes with them, and saved activations.

    Compiled code saves less than this, and other types take other space; what is compared is two of these estimates,
    of which such factors cancel.
    """
    if shapes is None or shapes["activations_of_1"] is None:
        return None
    rows, one, two = shapes["device_batch_size"], shapes["activations_of_1"], shapes["activations_of_2"]
    a_row = one if two is None else two - one  # what does not grow with the rows, such as masks, is there once
    activations = one + (rows - 1) * a_row
    return float((1 + BYTES_BESIDE_PARAMETERS) * shapes["parameter_bytes"] + max(activations, 0))


def problem(before: float, after: float, measured: MeasuredMemory) -> str:
    """What to say of an edit whose estimate went from before to after; "" where it fits, or may."""
    predicted_mb = measured.peak_mb * after / before
    if predicted_mb <= BEYOND * measured.total_mb:
        return ""
    predicted_gb, total_gb, peak_gb = (mb * _MB / 1e9 for mb in (predicted_mb, measured.total_mb, measured.peak_mb))
    return (
        f"It would need about {predicted_gb:.0f} GB of GPU memory, and the GPU has {total_gb:.0f} GB: before the edit "
        f"{peak_gb:.1f} GB were measured, and parameters and activations grow to {after / before:.1f} times of theirs. "
        "Use a smaller DEVICE_BATCH_SIZE (TOTAL_BATCH_SIZE may stay) or a smaller model."
    )
