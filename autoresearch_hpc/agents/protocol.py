"""What every agent promises.

An agent is rebuilt when a run resumes: a new one hears all past outcomes again, in order. So what it proposes may
depend only on its configuration, the seed, the outcomes it was told and the state it is asked with; a controller
that died between asking and submitting then gets the same proposals again.
"""

from collections.abc import Sequence
from typing import Protocol

from autoresearch_hpc.records import Outcome, Proposal, SearchState

__all__ = ["Agent"]


class Agent(Protocol):
    """Proposes edits and hears verdicts; never touches git, Slurm or disk."""

    def ask(self, state: SearchState, k: int) -> Sequence[Proposal]:
        """Up to k proposals for round `state.index`; none ends the run."""
        ...

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Hear how candidates ended: a judged round's, or on resume all of the past ones."""
        ...
