"""What a training script imports: a session with a device, a clock and batches. Candidates may not edit it."""

from autoresearch_hpc.dataset import Meta
from autoresearch_hpc.harness.session import Session

__all__ = ["Meta", "Session"]
