"""Settings as points of the unit cube: each knob on its own scale, whole numbers and choices as cells of equal width.

Choices lie in the order in which the space lists them.
"""

import math
from typing import Any

from autoresearch_hpc.config import KnobType
from autoresearch_hpc.records import KnobValue
from autoresearch_hpc.space import Domain

__all__ = ["fraction", "num_cells", "value_at"]


def num_cells(domain: Domain) -> int:
    """Of equal width, one a value; none where the scale is continuous, or its values do not lie evenly on it."""
    continuous = domain.type is KnobType.float or (domain.type is KnobType.int and domain.log)
    return 0 if continuous else int(domain.size)


def fraction(domain: Domain, value: Any) -> float:
    """Where a value of the domain lies between 0 and 1: in the middle of its cell, where it has one."""
    if cells := num_cells(domain):
        match domain.type:
            case KnobType.choice:
                cell = domain.choices.index(value)
            case KnobType.pow2:
                cell = int(value).bit_length() - int(domain.low).bit_length()
            case _:
                cell = int(value - domain.low)
        return (cell + 0.5) / cells
    if domain.log:
        return math.log(value / domain.low) / math.log(domain.high / domain.low)
    return float((value - domain.low) / (domain.high - domain.low))


def value_at(domain: Domain, place: float) -> KnobValue:
    """The value of the domain at a place between 0 and 1."""
    if cells := num_cells(domain):
        cell = min(int(place * cells), cells - 1)
        match domain.type:
            case KnobType.choice:
                return domain.choices[cell]
            case KnobType.pow2:
                return int(domain.low) << cell
        return int(domain.low) + cell
    if domain.log:
        value = domain.low * math.exp(place * math.log(domain.high / domain.low))
    else:
        value = domain.low + place * (domain.high - domain.low)
    inside = min(max(value, domain.low), domain.high)
    return domain.canonical(round(inside) if domain.type is KnobType.int else inside)
