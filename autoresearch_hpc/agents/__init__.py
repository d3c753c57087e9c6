"""Agents: who proposes candidates. They know no git and no Slurm; see `protocol`.

Samplers of a space are `gp`, `tpe`, `cmaes`, `random`, `grid` and `factorial`; `llm`, `cli` and `hybrid` edit code;
`plan` proposes what the plan says. Another package adds its own under the entry point group
"autoresearch_hpc.agents", or is named as `agent.name=package.module:Class`: a callable that takes a `Brief` and returns
an Agent.
"""

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence

from autoresearch_hpc.agent_config import ENTRY_POINTS, Drafter
from autoresearch_hpc.agents import cli, endpoint
from autoresearch_hpc.agents.authors import Author
from autoresearch_hpc.agents.cmaes import CmaEsAgent
from autoresearch_hpc.agents.editing import EditingAgent
from autoresearch_hpc.agents.factorial import FactorialAgent
from autoresearch_hpc.agents.gp import GpAgent
from autoresearch_hpc.agents.grid import GridAgent
from autoresearch_hpc.agents.llm import LlmAuthor
from autoresearch_hpc.agents.plan import PlanAgent
from autoresearch_hpc.agents.protocol import Agent, Brief, Desk, Farsighted
from autoresearch_hpc.agents.random_search import RandomAgent
from autoresearch_hpc.agents.sampling import Sampler
from autoresearch_hpc.agents.tpe import TpeAgent
from autoresearch_hpc.config import PlanConfig
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.records import Outcome, Proposal, SearchState
from autoresearch_hpc.space import Space

__all__ = [
    "EDITING",
    "ENTRY_POINTS",
    "Agent",
    "Brief",
    "Builder",
    "Desk",
    "PlannedAgent",
    "build",
    "require_answering",
]

EDITING = ("llm", "cli", "hybrid")
Builder = Callable[[Brief], Agent]

_SAMPLERS: Mapping[str, type[Sampler]] = {
    "cmaes": CmaEsAgent,
    "factorial": FactorialAgent,
    "gp": GpAgent,
    "grid": GridAgent,
    "random": RandomAgent,
    "tpe": TpeAgent,
}


class PlannedAgent:
    """Asks the plan in rounds with explicit candidates, the proposer in the others; both hear everything."""

    def __init__(self, plan: PlanConfig, proposer: Agent) -> None:
        self._plan = plan
        self._planned = PlanAgent(plan)
        self._proposer = proposer

    def ask(self, state: SearchState, k: int) -> Sequence[Proposal]:
        agent: Agent = self._proposer if self._plan.is_open(state.index) else self._planned
        return agent.ask(state, k)

    def incremental(self, index: int) -> bool:
        """Whether a part of round `index` may be asked for, and the rest later."""
        return self._plan.is_open(index) and bool(getattr(self._proposer, "incremental", False))

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        self._planned.tell(outcomes)
        self._proposer.tell(outcomes)

    def prepare(self, state: SearchState, k: int) -> None:
        """Let the proposer think ahead of round `state.index`, if it is one that does and the round is its own."""
        if isinstance(self._proposer, Farsighted) and self._plan.is_open(state.index):
            self._proposer.prepare(state, k)

    def close(self) -> None:
        if isinstance(self._proposer, Farsighted):
            self._proposer.close()


def require_answering(brief: Brief) -> None:
    """Raise ConfigError where the agent needs an endpoint that does not answer, or refuses its key."""
    config = brief.config
    if config.name == "llm" or (config.name == "hybrid" and config.drafter is Drafter.llm):
        endpoint.require_answering(config)


def build(brief: Brief) -> PlannedAgent:
    """The agent of a run: explicit candidates where the plan has them, else the configured agent's proposals.

    Raises ConfigError for an unknown agent or option, and where the agent would need a space, candidates, a key or a
    program that are not there.
    """
    plan = brief.plan
    rounds = range(plan.first_round, plan.num_rounds + 1)
    open_rounds = [index for index in rounds if plan.is_open(index)]
    proposer = _proposer(brief, needed=bool(open_rounds))
    if brief.config.name == "plan" and open_rounds:
        raise ConfigError(
            f"round {open_rounds[0]} of the plan has no candidates and agent=plan proposes none of its own",
            "add candidates to the plan, or choose agent=gp and a space",
        )
    return PlannedAgent(plan, proposer)


def _proposer(brief: Brief, *, needed: bool) -> Agent:
    """The agent that the configuration names."""
    name = brief.config.name
    own = name != "plan" and name not in EDITING and name not in _SAMPLERS
    if own:
        return _builder(name)(brief)
    if name == "plan" or not needed:
        return PlanAgent(brief.plan)
    if name in EDITING:
        return _editing(brief)
    if brief.space is None:
        raise ConfigError(f"agent={name} has no space to search", "choose one, e.g. space=seed")
    return _sampler(brief, name, brief.space)


def _sampler(brief: Brief, name: str, space: Space) -> Agent:
    config = brief.config
    options = dict(config.options)
    if name in ("gp", "tpe"):
        options = {"startup_trials": config.startup_trials, **options}
    elif name == "factorial":
        options = {"design": config.design, "fit": brief.fit, **options}
    try:
        return _SAMPLERS[name](space, brief.seed, brief.fixed, allow_repeats=config.allow_repeats, **options)
    except TypeError as error:
        raise ConfigError(f"agent.options={config.options} for agent={name}: {error}") from error


def _editing(brief: Brief) -> Agent:
    """An agent that edits code; without a desk nothing but a check of what it needs."""
    config = brief.config
    if config.name == "hybrid" and brief.space is None:
        raise ConfigError("agent=hybrid has no space to search", "choose one, e.g. space=seed, or agent=llm")
    by_cli = config.name == "cli" or (config.name == "hybrid" and config.drafter is Drafter.cli)
    if by_cli:
        cli.require_usable(brief)
    else:
        endpoint.require_usable(config)
    if brief.space is not None:
        _sampler(brief, config.sampler, brief.space)
    if brief.desk is None:
        return PlanAgent(brief.plan)
    author: Author = cli.CliAuthor(brief) if by_cli else LlmAuthor(brief)
    share = config.share if config.name == "hybrid" else 1.0
    return EditingAgent(brief, author, lambda space: _sampler(brief, config.sampler, space), share)


def _builder(name: str) -> Builder:
    """A builder of another package, by its entry point or by its place."""
    found = importlib.metadata.entry_points(group=ENTRY_POINTS)
    if name in found.names:
        builder: Builder = found[name].load()
        return builder
    module, colon, attribute = name.partition(":")
    if not colon:
        known = ", ".join(sorted({"plan", *_SAMPLERS, *EDITING, *found.names}))
        raise ConfigError(f"agent={name} is unknown", f"the agents are {known}; or name one as package.module:Class")
    try:
        builder = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"agent.name={name}: {error}", "name what can be imported: package.module:Class") from error
    return builder
