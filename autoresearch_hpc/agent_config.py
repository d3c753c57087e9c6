"""The part of the schema that says who proposes; `config` holds the rest, and says how both are read.

The comment behind each field is its documentation: docs/configuration.md is generated from it.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from autoresearch_hpc.errors import require

ENTRY_POINTS = "autoresearch_hpc.agents"  # where other packages offer agents of theirs


class Diversity(Enum):
    one = "one"
    directions = "directions"


class Prefetch(Enum):
    none = "none"
    rebase = "rebase"
    revise = "revise"


class Drafter(Enum):
    llm = "llm"
    cli = "cli"


class Sandbox(Enum):
    auto = "auto"
    require = "require"
    none = "none"


class DesignKind(Enum):
    auto = "auto"
    two_level = "two_level"
    grid = "grid"
    latin_hypercube = "latin_hypercube"
    sobol = "sobol"


@dataclass
class DesignConfig:
    """Waves of agent=factorial."""

    kind: DesignKind = DesignKind.auto  # the first wave: two levels around the incumbent; of one factor a grid
    resolution: int = 3  # at least, of a two-level wave; factors for which K has no room wait for a later one
    span: float = 0.25  # from the incumbent to a level, as a part of the knob's range, on its own scale
    centre_points: int = 0  # further runs of the incumbent in each wave; it is known as the centre without them
    replicates: int = 1  # runs of every setting
    factors: list[str] = field(default_factory=list)  # knobs to vary; default all of the space

    def __post_init__(self) -> None:
        require(self.resolution >= 3, f"agent.design.resolution={self.resolution}", "give 3, 4, 5 or more")
        require(0 < self.span <= 1, f"agent.design.span={self.span}", "give a part of the range, above 0 and at most 1")
        require(self.centre_points >= 0, f"agent.design.centre_points={self.centre_points}", "give 0 or more")
        require(self.replicates >= 1, f"agent.design.replicates={self.replicates}", "give 1 or more")


@dataclass
class CliConfig:
    """A coding CLI that edits files in a directory and exits."""

    command: list[str] = field(
        default_factory=list
    )  # its words; {prompt}, {prompt_file}, {model}, {base_url}, {tmp} stand in
    stdin: bool = False  # the prompt goes to its standard input
    keys: list[str] = field(default_factory=list)  # your variables that it gets: its own key, no other's
    env: dict[str, str] = field(default_factory=dict)  # further environment, no secrets
    limit_s: float = 900.0  # how long it may take for one candidate
    parallel: int = 4  # how many work at once, each in a directory of its own
    sandbox: Sandbox = Sandbox.auto  # it writes to its directory alone: where Landlock can; must; never
    readable: list[str] = field(default_factory=list)  # directories that it must read beyond the system's
    usd_per_call: float = 0.0  # what one call is charged with, since a CLI does not tell

    def __post_init__(self) -> None:
        require(self.limit_s > 0, f"agent.cli.limit_s={self.limit_s}", "give seconds above 0")
        require(self.parallel >= 1, f"agent.cli.parallel={self.parallel}", "give at least 1")
        require(self.usd_per_call >= 0, f"agent.cli.usd_per_call={self.usd_per_call}", "give 0 or more")


@dataclass
class AgentConfig:
    """Who proposes."""

    name: str = "gp"  # plan, gp, tpe, cmaes, random, grid, factorial, llm, cli, hybrid, or your own: docs/agents.md
    allow_repeats: bool = False  # may a setting that was already tried be proposed again
    startup_trials: int = 10  # gp, tpe: random proposals before the model is used
    options: dict[str, Any] = field(default_factory=dict)  # further options of a sampler, or of an agent of your own
    base_url: str = "https://api.openai.com/v1"  # llm: an OpenAI-compatible endpoint; file:PATH, a job's own
    model: str | None = None  # llm: the model; with base_url=file:... the one that the file names
    key_env: str = "OPENAI_API_KEY"  # llm: the variable that holds the key, never written anywhere
    key_file: str | None = None  # llm: or a file with nothing but the key
    temperature: float | None = None  # llm: default the endpoint's
    max_tokens: int = 16000  # llm: of one answer, thoughts included
    json_mode: bool = True  # llm: ask the endpoint for JSON, where it knows how
    timeout_s: float = 300.0  # llm: for one answer
    max_retries: int = 4  # llm: after time-outs, rate limits and errors of the endpoint
    server_wait_min: float = 10.0  # llm: how long to wait for a file:... endpoint
    usd_per_million_in: float = 0.0  # llm: price of a million tokens of prompt
    usd_per_million_out: float = 0.0  # llm: price of a million tokens of answer
    prompt_chars: int = 80000  # how long a prompt may be; the record of experiments gives way first
    diversity: Diversity = Diversity.one  # llm: one request for all K, or one for each with a direction of its own
    directions: list[str] = field(default_factory=list)  # where to look; default eight that come in turn
    spare: int = 2  # llm: how many more to ask for than the round has slots
    repairs: int = 2  # how often a rejected proposal gets its error back
    checks_s: float = 60.0  # while GPUs wait, how long drafts may be tried out; then by their text and shapes alone
    fix: bool = True  # may a candidate that failed be mended, once, in the next round
    prefetch: Prefetch = Prefetch.revise  # while a round trains, draft the next: no; keep what applies; ask again
    revise_s: float = 60.0  # how long the revision may take, before the drafts go out as they are
    share: float = 0.3  # hybrid: of the slots, for the LLM; the sampler has the others
    drafter: Drafter = Drafter.llm  # hybrid: who edits code
    sampler: str = "gp"  # hybrid's other half, and who fills slots that are left: gp, tpe, cmaes or random
    program: str = "program.md"  # the human's instructions, a file of the repository
    cli: CliConfig = field(default_factory=CliConfig)
    design: DesignConfig = field(default_factory=DesignConfig)

    def __post_init__(self) -> None:
        for name in ("timeout_s", "max_tokens", "revise_s", "prompt_chars"):
            require(getattr(self, name) > 0, f"agent.{name}={getattr(self, name)}", "give a number above 0")
        for name in (
            "max_retries",
            "spare",
            "repairs",
            "server_wait_min",
            "checks_s",
            "usd_per_million_in",
            "usd_per_million_out",
        ):
            require(getattr(self, name) >= 0, f"agent.{name}={getattr(self, name)}", "give 0 or more")
        require(0 < self.share <= 1, f"agent.share={self.share}", "give a share of the slots, above 0 and at most 1")
        samplers = ("gp", "tpe", "cmaes", "random")
        require(self.sampler in samplers, f"agent.sampler={self.sampler}", "use gp, tpe, cmaes or random")
