"""Agents: who proposes candidates. They know no git, no Slurm and no disk layout; see `protocol`.

`plan`, `grid`, `random` and `tpe` are here; another package adds its own under the entry point group
"autoresearch_hpc.agents": a callable with the parameters of `Builder` that returns an Agent.
"""

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence

from autoresearch_hpc.agents.cmaes import CmaEsAgent
from autoresearch_hpc.agents.grid import GridAgent
from autoresearch_hpc.agents.plan import PlanAgent
from autoresearch_hpc.agents.protocol import Agent
from autoresearch_hpc.agents.random_search import RandomAgent
from autoresearch_hpc.agents.sampling import Sampler
from autoresearch_hpc.agents.tpe import TpeAgent
from autoresearch_hpc.config import AgentConfig, PlanConfig
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.records import Knobs, Outcome, Proposal, SearchState
from autoresearch_hpc.space import Space

__all__ = ["ENTRY_POINTS", "Agent", "Builder", "build"]

ENTRY_POINTS = "autoresearch_hpc.agents"
Builder = Callable[[AgentConfig, PlanConfig, Space | None, int, Knobs], Agent]

_SAMPLERS: Mapping[str, type[Sampler]] = {
    "cmaes": CmaEsAgent,
    "grid": GridAgent,
    "random": RandomAgent,
    "tpe": TpeAgent,
}


def build(config: AgentConfig, plan: PlanConfig, space: Space | None, seed: int, fixed: Knobs | None = None) -> Agent:
    """The agent of a run: explicit candidates where the plan has them, else the configured agent's proposals.

    `fixed` gives SEQ_LEN and VOCAB_SIZE to the space's bounds. Raises ConfigError for an unknown agent or option, and
    where the agent would need a space or candidates that are not there.
    """
    rounds = range(plan.first_round, plan.num_rounds + 1)
    open_rounds = [index for index in rounds if not plan.round(index).candidates]
    proposer = _named(config, plan, space, seed, fixed or {}, needed=bool(open_rounds))
    if isinstance(proposer, PlanAgent) and open_rounds:
        raise ConfigError(
            f"round {open_rounds[0]} of the plan has no candidates and agent=plan proposes none of its own",
            "add candidates to the plan, or choose agent=tpe and a space",
        )
    return _Dispatch(plan, PlanAgent(plan), proposer)


class _Dispatch:
    """Asks the plan in rounds with explicit candidates, the proposer in the others; both hear everything."""

    def __init__(self, plan: PlanConfig, planned: Agent, proposer: Agent) -> None:
        self._plan = plan
        self._planned = planned
        self._proposer = proposer

    def ask(self, state: SearchState, k: int) -> Sequence[Proposal]:
        agent = self._planned if self._plan.round(state.index).candidates else self._proposer
        return agent.ask(state, k)

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        self._planned.tell(outcomes)
        self._proposer.tell(outcomes)


def _named(
    config: AgentConfig, plan: PlanConfig, space: Space | None, seed: int, fixed: Knobs, *, needed: bool
) -> Agent:
    """The agent that the configuration names."""
    if config.name == "plan":
        return PlanAgent(plan)
    if config.name not in _SAMPLERS:
        return _from_entry_point(config.name)(config, plan, space, seed, fixed)
    if space is None:
        if needed:
            raise ConfigError(f"agent={config.name} has no space to search", "choose one, e.g. space=seed")
        return PlanAgent(plan)
    options = dict(config.options)
    if config.name == "tpe":
        options = {"startup_trials": config.startup_trials, **options}
    try:
        return _SAMPLERS[config.name](space, seed, fixed, allow_repeats=config.allow_repeats, **options)
    except TypeError as error:
        raise ConfigError(f"agent.options={config.options} for agent={config.name}: {error}") from error


def _from_entry_point(name: str) -> Builder:
    found = importlib.metadata.entry_points(group=ENTRY_POINTS)
    if name not in found.names:
        known = ", ".join(sorted({"plan", *_SAMPLERS, *found.names}))
        raise ConfigError(f"agent={name} is unknown", f"the agents are {known}")
    builder: Builder = found[name].load()
    return builder
