"""Screening: checks of an edit that cost no GPU, before an agent's proposal becomes a candidate.

What is wrong is told in words that an author can act on. A check that cannot decide lets the edit pass: the trial is
the judge. The edit's code runs in processes that are shut in as trials are.
"""

from autoresearch_hpc.screening.memory import MeasuredMemory
from autoresearch_hpc.screening.screen import Screen

__all__ = ["MeasuredMemory", "Screen"]
