"""How a trial ended, before the worker adds who, where and how long."""

from dataclasses import dataclass

from autoresearch_hpc.records import Failure, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Status, the metric where it is OK, and what the script reported on the way."""

    status: Status
    value: float | None = None
    error: Failure | None = None
    steps: int | None = None
    tokens: int | None = None
    num_params: int | None = None
    peak_vram_mb: float | None = None
    mfu: float | None = None
