"""The values that travel between stages, and their JSON form.

All are frozen. `to_json` and `from_json` are exact inverses; `from_json` refuses unknown and missing keys and
wrong types, so a file of another schema is noticed at once.
"""

import functools
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar, cast

import cattrs
import cattrs.v

from autoresearch_hpc.estimates import Effects, Term
from autoresearch_hpc.gains import Comparison, Noise

SCHEMA = 1

KnobValue = int | float | str | bool | None | tuple["KnobValue", ...]
Knobs = Mapping[str, KnobValue]


class Status(StrEnum):
    """How a trial ended. Anything but OK has no metric."""

    OK = "OK"
    CRASHED = "CRASHED"
    OOM = "OOM"
    TIMEOUT = "TIMEOUT"
    DIVERGED = "DIVERGED"
    INVALID = "INVALID"  # broke the contract: no checkpoint, wrong shapes, touched what it may not
    LOST = "LOST"  # the node or the job went away without a result
    CANCELLED = "CANCELLED"


class Direction(StrEnum):
    min = "min"
    max = "max"

    def better(self, a: float, b: float) -> bool:
        """Whether a is strictly better than b."""
        return a < b if self is Direction.min else a > b


class Verdict(StrEnum):
    """What became of a candidate; the words of results.tsv."""

    KEEP = "keep"
    DISCARD = "discard"
    CRASH = "crash"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """An edit that an agent asks for: knob settings, whole files (path -> new text), or both.

    `on` names the candidate that the edit starts from, by its `name` or id ("baseline" is round 0's first); None is
    the incumbent. An empty edit on the incumbent is a replicate. `parts` are the near misses that a combination is of.
    """

    title: str
    knobs: Knobs = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    on: str | None = None
    name: str | None = None
    origin: str = ""  # the agent that asked
    reasoning: str = ""
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A proposal as a git commit on `parent`. `knobs` are all of its knobs' values, `diff_lines` its size."""

    id: str
    round: int
    proposal: Proposal
    parent: str
    commit: str
    knobs: Knobs = field(default_factory=dict)
    diff_lines: int = 0
    net_lines: int = 0  # lines added less lines removed
    fingerprint: str = ""  # of its editable files and settings: equal where two candidates mean the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    name: str
    value: float | None
    direction: Direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Where a trial's wall time went, in seconds; `total_s` is from the worker's start to its result."""

    queue_s: float | None = None
    startup_s: float | None = None
    compile_s: float | None = None
    train_s: float | None = None
    eval_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    name: str | None = None
    uuid: str | None = None
    count: int = 0
    visible: str | None = None  # CUDA_VISIBLE_DEVICES as the trial saw it
    memory_mb: float | None = None  # in all; None of a slice


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmJob:
    job_id: str
    array_job_id: str | None = None
    array_task_id: int | None = None
    partition: str | None = None
    gres: str | None = None  # SLURM_JOB_GRES / SLURM_STEP_GPUS as granted, where Slurm says
    nodelist: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    type: str
    message: str
    tail: str = ""  # last lines of the trial's log


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """`result.json`, schema 1: one execution of one candidate. A failed one has no metric value; it is never 0.0.

    Times are UTC, ISO 8601. Raises ValueError where status and value contradict each other, and for a value
    that is not finite.
    """

    run: str
    round: int
    candidate: str
    trial: str
    attempt: int
    commit: str
    status: Status
    metric: Metric
    evaluator: str  # "trusted" | "self-reported"
    seed: int
    tier: str
    host: str
    started_at: str
    ended_at: str
    gpu: Gpu = field(default_factory=Gpu)
    slurm: SlurmJob | None = None
    phases: Phases = field(default_factory=Phases)
    peak_vram_mb: float | None = None
    steps: int | None = None
    tokens: int | None = None
    mfu: float | None = None
    num_params: int | None = None
    torch: str | None = None  # version of torch on the node
    error: Failure | None = None
    data_sha256: str | None = None
    harness_sha256: str | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"result of schema {self.schema}, expected {SCHEMA}")
        if (self.status is Status.OK) != (self.metric.value is not None):
            raise ValueError(f"status {self.status} with metric value {self.metric.value}")
        if self.metric.value is not None and not math.isfinite(self.metric.value):
            raise ValueError(f"a metric of {self.metric.value}")

    @property
    def kind(self) -> str:
        """What must be equal for the values of two trials to be compared, in words."""
        return _kind(self.gpu.name, self.tier, self.torch, self.data_sha256, self.harness_sha256)


@functools.lru_cache(maxsize=64)
def _kind(gpu: str | None, tier: str, torch: str | None, data: str | None, harness: str | None) -> str:
    """Asked for again and again, of a few kinds."""
    parts = [gpu or "CPU", f"tier {tier}"]
    parts += [f"torch {torch}"] if torch else []
    parts += [f"data {data[:8]}"] if data else []
    parts += [f"harness {harness[:8]}"] if harness else []
    return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSpec:
    """How an unknown script is run and where its metric stands (task=command)."""

    command: str  # a shell line; {KNOB} is replaced where knobs travel by template
    env: Mapping[str, str] = field(default_factory=dict)
    metric_json: str | None = None  # file relative to the trial's copy of the repository
    metric_key: str | None = None  # dotted key inside it
    metric_regex: str | None = None  # last match over the output; group 1 is the number


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """All that the worker on the compute node needs; `trial.json` in the trial's directory.

    Limits in seconds: `startup_limit_s` until the clock starts, `train_s` of training, `overrun_s` for the end of its
    last step, `grace_s` from the end of the clock to a saved checkpoint, `eval_limit_s` for the evaluation,
    `stage_limit_s` for the data's way to the node, before all these. For task=command only `train_s` + `grace_s` count.
    """

    run: str
    round: int
    candidate: str
    trial: str
    commit: str
    seed: int
    tier: str
    kind: str  # "gpt" | "command"
    src: str
    trial_dir: str
    metric: Metric
    device: str  # "auto" | "cuda" | "cpu"
    train_s: float
    startup_limit_s: float
    grace_s: float
    eval_limit_s: float
    overrun_s: float = 3.0
    eval_tokens: int = 0
    eval_batch_rows: int = 0
    script: str = "train.py"
    data_dir: str | None = None
    data_sha256: str | None = None
    harness_sha256: str | None = None
    src_sha256: Mapping[str, str] = field(default_factory=dict)  # exported file -> sha256
    num_threads: int | None = None
    submitted_at: str | None = None
    inbox: str | None = None  # directory in which the worker announces its result, by an empty file named as the trial
    command: CommandSpec | None = None
    pass_env: tuple[str, ...] = ()  # variables that reach the trial beyond those that every trial gets
    sandbox: str = "auto"  # "auto" | "require" | "none"
    stage: str | None = None  # a directory of the node's own for a copy of the training data, variables as given
    stage_limit_s: float = 0.0
    parent: str | None = None  # the commit that this one was built on
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an agent hears of one candidate: its edit, its settings, how it ended and what was decided.

    `value` is the mean over its `num_trials` good trials where candidates are tried, brought to the level of the
    baseline's kind of GPU where they run on several; `finding` compares it with the incumbent of its time, with
    the noise, and its `words` say so in a line. The baseline has none; of what failed or could not be compared it has
    no gain.
    """

    candidate: str
    round: int
    proposal: Proposal
    knobs: Knobs
    status: Status
    value: float | None
    verdict: Verdict | None = None
    finding: Comparison | None = None
    error: Failure | None = None
    fingerprint: str = ""
    peak_vram_mb: float | None = None
    num_trials: int = 1
    kind: str = ""  # of these trials: values of two kinds do not compare


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchState:
    """What an agent may know when it is asked: never hardware, git or Slurm.

    `source` is the editable files of the incumbent, path -> text. `outcomes` are all of the run's so far, in order.
    `index` is the number of the round being asked for; the plan's rounds count from 1.

    `noise` is how far single trials of one candidate spread: a difference that is not well above it is luck. None
    where nothing is known of it. `pool` are the near misses, best first: candidates of the round that brought the
    incumbent, or of a later one, that looked better under fresh seeds but could not be told from luck. Their edits are
    not in the incumbent; a few together may be worth what each alone was too small to show. Each one's outcome says
    by how much it was ahead.

    `failed` are the editable files of the newest judged round's candidates that failed: what a mended version of one
    starts from (`Proposal.on`). `running` are the proposals that are under way and have no outcome yet: of a round that
    trains while the next one is thought about, or of all open ones where rounds overlap, and combinations of near
    misses that the round has already. `num_proposed` candidates of the round were proposed before; 0 but with
    schedule=async. `remaining` says what the budget still has, in words. `effects` is what the results tell of the
    space's knobs; None while they are too few.
    """

    index: int
    direction: Direction
    metric: str
    incumbent: str | None
    incumbent_value: float | None
    incumbent_knobs: Knobs
    source: Mapping[str, str]
    outcomes: tuple[Outcome, ...]
    program: str = ""
    noise: Noise | None = None
    pool: tuple[str, ...] = ()
    failed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    running: tuple[Proposal, ...] = ()
    num_proposed: int = 0
    remaining: tuple[str, ...] = ()
    effects: Effects | None = None


def candidate_id(round_: int, index: int) -> str:
    return f"r{round_:02d}-c{index:02d}"


def trial_id(candidate: str, index: int) -> str:
    return f"{candidate}-t{index}"


T = TypeVar("T")


def to_json(value: object) -> dict[str, Any]:
    """A record as JSON-ready dictionaries, lists and plain values."""
    return cast("dict[str, Any]", _converter().unstructure(value))


def from_json(cls: type[T], payload: Mapping[str, object]) -> T:
    """The record that payload describes. Raises ValueError naming the first thing that does not fit."""
    if not isinstance(payload, Mapping):
        raise ValueError(f"not a {cls.__name__}: no JSON object but {payload!r}")
    try:
        return _converter().structure(payload, cls)
    except cattrs.BaseValidationError as error:
        problems = cattrs.transform_error(error, format_exception=_words)
        raise ValueError(f"not a {cls.__name__}: {'; '.join(problems)}") from error
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"not a {cls.__name__}: {error}") from error


def _words(error: BaseException, expected: type[Any] | None) -> str:
    return str(error) if type(error) is ValueError else cattrs.v.format_exception(error, expected)


def knob_value(value: object) -> KnobValue:
    """A plain value as a knob's: sequences become tuples. Raises ValueError on anything else, NaN included."""
    if type(value) is int or type(value) is str:  # most are
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no setting: set a finite number")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return tuple(knob_value(item) for item in value)
    raise ValueError(f"a knob holds numbers, strings, booleans or tuples of them, not {type(value).__name__}")


@functools.cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for plain in (int, float, str, bool):
        converter.register_structure_hook(plain, _strict)
    for word in (Status, Direction, Verdict, Term):  # strings by inheritance: the hook of str would catch them
        converter.register_structure_hook(word, lambda value, enum: enum(value))
    converter.register_structure_hook_func(lambda t: t == KnobValue, lambda value, _: knob_value(value))
    converter.register_unstructure_hook_func(lambda t: t == KnobValue, lambda value: value)
    return converter


def _strict(value: object, expected: type) -> object:
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not expected:
        raise ValueError(f"expected {expected.__name__}, found {value!r}")
    return sys.intern(value) if type(value) is str else value  # names, hosts, hashes: of thousands of trials the same
