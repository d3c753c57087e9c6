"""What every agent promises, and what it may reach.

An agent is rebuilt when a run resumes: a new one hears all past outcomes again, in order. So what it proposes may
depend only on its configuration, the seed, the outcomes it was told, the state it is asked with, and on what it has
kept in `Desk.folder`; a controller that died between asking and submitting then gets the same proposals again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from autoresearch_hpc import effects
from autoresearch_hpc.agent_config import AgentConfig
from autoresearch_hpc.config import PlanConfig
from autoresearch_hpc.records import Knobs, Outcome, Proposal, SearchState
from autoresearch_hpc.space import Space

__all__ = ["Agent", "Brief", "Desk", "Farsighted"]


class Agent(Protocol):
    """Proposes edits and hears verdicts; never touches git or Slurm.

    One with an attribute `incremental` that is true may be asked for a round in parts, as slots come free
    (schedule=async): `state.num_proposed` says how many of its candidates there are already. Others are asked once.
    """

    def ask(self, state: SearchState, k: int) -> Sequence[Proposal]:
        """Up to k proposals for round `state.index`; none ends the run."""
        ...

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Hear how candidates ended: a judged round's, or on resume all of the past ones."""
        ...


@runtime_checkable
class Farsighted(Protocol):
    """An agent that uses the time in which a round trains to think of the next one."""

    def prepare(self, state: SearchState, k: int) -> None:
        """Begin to think of round `state.index`, whose predecessor is `state.running`; return at once."""
        ...

    def close(self) -> None:
        """End what was begun; the run stops, or the agent will not be asked again."""
        ...


class Desk(Protocol):
    """What the controller does for an agent that thinks for long, spends money, or edits code."""

    def folder(self, round_: int) -> Path:
        """A directory of the run in which the agent may keep what it asked and heard for a round; it exists."""
        ...

    def problem(self, before: Mapping[str, str], after: Mapping[str, str], *, quick: bool = False) -> str:
        """What is wrong with the editable files `after`, an edit of `before`, in words; empty where nothing is.

        Costs no GPU, but some five seconds; a quick check costs one, and finds less.
        """
        ...

    def may_spend(self, call: str, usd: float) -> str:
        """Note that a call begins that costs at most so much. Why it may not begin, by the budget; else empty."""
        ...

    def spent(self, call: str, usd: float, prompt_tokens: int, answer_tokens: int) -> None:
        """Note what a call has cost, once."""
        ...

    def check_stop(self) -> None:
        """Raises InterruptedRun where the run shall stop; to be asked often by who waits in `Agent.ask`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Brief:
    """What an agent is built from.

    `fixed` gives SEQ_LEN and VOCAB_SIZE to the space's bounds. `script` is the editable file whose constants are the
    knobs; None where knobs travel beside it. Without a desk an agent can only be built, not asked. `fit` estimates the
    effects of knobs; a controller's does so in another process.
    """

    config: AgentConfig
    plan: PlanConfig
    space: Space | None
    seed: int = 0
    fixed: Knobs = field(default_factory=dict)
    script: str | None = None
    desk: Desk | None = None
    fit: effects.Fit = effects.fit
