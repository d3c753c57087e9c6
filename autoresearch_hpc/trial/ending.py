"""How a trial ended, before the worker adds who and where."""

from dataclasses import dataclass

from autoresearch_hpc.records import Failure, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Status, the metric where it is OK, and what was measured on the way; seconds by the worker's clock."""

    status: Status
    value: float | None = None
    error: Failure | None = None
    startup_s: float | None = None
    compile_s: float | None = None
    train_s: float | None = None
    eval_s: float | None = None
    steps: int | None = None
    tokens: int | None = None
    num_params: int | None = None
    peak_vram_mb: float | None = None
    mfu: float | None = None
