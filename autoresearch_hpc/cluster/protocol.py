"""What every back end does, and the words for it."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from autoresearch_hpc import environment
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.layout import ArrayPaths
from autoresearch_hpc.records import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Trials that go out together: one job array. `trials` maps trial id -> trial.json, in array order.

    `job_name` is unique to this submission: it is how a lost one is found again. `tier` is the kind of GPU that all of
    them use. `avoid` names nodes that are not to be used, unless no others are left.
    """

    job_name: str
    trials: Mapping[str, Path]
    array: ArrayPaths
    wall_limit_s: float
    tier: str = ""
    avoid: tuple[str, ...] = ()

    def manifest(self) -> dict[str, object]:
        """array.json: task -> trial."""
        return {"ids": list(self.trials), "trials": [str(path) for path in self.trials.values()]}


class Wait(Enum):
    """What a job that has not begun is waiting for."""

    turn = "turn"  # its turn: resources, priority, a throttle
    stuck = "stuck"  # something that does not come by itself: held, a group's limit, a node under maintenance
    failed = "failed"  # nothing: its launch failed, and Slurm holds it


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as its cluster tells it: the cluster's own word, and what that means."""

    word: str  # PENDING, RUNNING, COMPLETED, NODE_FAIL, …
    ended: bool
    status: Status = Status.LOST  # of a trial whose job ended without a result
    node: str | None = None  # where it runs or ran
    wait: Wait = Wait.turn
    reason: str = ""  # of a job that waits: the cluster's word for it, and what that means


class Cluster(Protocol):
    """Submits arrays, finds them again, watches and cancels them; never waits for them."""

    name: str  # "slurm" | "local"
    durable: bool  # whether a job id stays good for the next controller
    max_array: int  # the most trials that one submission may hold
    num_threads: int | None  # CPU threads a trial may use; None: what the node gives

    @property
    def accounts(self) -> bool:
        """Whether there is accounting that `charges` may still tell of."""
        ...

    def check(self, wall_limit_s: float, folder: Path) -> None:
        """Whether trials with their files below folder would be accepted, before anything is made.

        Raises ClusterError where the cluster would refuse them, ConfigError where folder cannot be used.
        """
        ...

    def job_limit_s(self, wall_limit_s: float) -> float:
        """The longest that a trial may hold its GPU: the limit that the cluster enforces."""
        ...

    def launch(self, submission: Submission) -> Mapping[str, str]:
        """Submit; the job id of each trial.

        Raises NoRoomError where a limit on jobs is reached, NoAnswerError where it stays unknown whether the submission
        arrived (ask `adopt`), ClusterError where the cluster refuses for good.
        """
        ...

    def adopt(self, submission: Submission) -> Mapping[str, str] | None:
        """Job ids of those of the submission's trials that the cluster knows, found by its job name.

        None where the cluster does not answer now, so that nothing can be concluded.
        """
        ...

    def poll(self, jobs: Mapping[str, str]) -> Mapping[str, JobState]:
        """What is known of each trial's job (trial -> job id); without those that cannot be told now. Never blocks."""
        ...

    def cancel(self, jobs: Mapping[str, str]) -> None:
        """End these jobs, and nothing else. Raises ClusterError where that could not be asked."""
        ...

    def charges(self, jobs: Mapping[str, str]) -> Mapping[str, float]:
        """GPU-seconds of each trial's job by the cluster's accounting, all of its attempts together.

        Of jobs that have ended; without those that are not told, or not yet. Never blocks: ask again.
        """
        ...


def worker_command(python: str, arguments: Sequence[str]) -> str:
    """The shell command that runs a trial's worker; `python` is a shell command itself (a container, say)."""
    return f"{python} -P -u -m autoresearch_hpc.trial.worker {shlex.join(arguments)}"


_ENCLOSING = re.compile(r"(SLURM|SBATCH|SRUN|SQUEUE|SACCT|SCANCEL|SCONTROL)_")
_CONNECTION = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"}


def enclosing_variables() -> list[str]:
    """Names of the variables that an enclosing job, or a user's habits, give Slurm's commands and our workers.

    They would override the options of a submission, change the form of answers, and pass for the trial's own.
    """
    return sorted(name for name in os.environ if _ENCLOSING.match(name) and name not in _CONNECTION)


def job_environment(pass_env: Sequence[str]) -> dict[str, str]:
    """What a job inherits: a controller may hold keys, and every process of its user on the node could read them."""
    hidden = set(enclosing_variables())
    return {name: value for name, value in environment.for_job(pass_env).items() if name not in hidden}


def connection_variables() -> dict[str, str]:
    """What Slurm's commands need to find, and to be let into, their cluster."""
    return {name: os.environ[name] for name in sorted(_CONNECTION) if name in os.environ}


_UNUSABLE = re.compile(r"%[jtAan]|[\\\n]")  # submitit fills those in, also in folders; Slurm drops backslashes


def require_usable(folder: Path) -> None:
    """Raise ConfigError where logs could not be written below folder."""
    if found := _UNUSABLE.search(str(folder)):
        raise ConfigError(f"{str(folder)!r} holds {found[0]!r}, which file names of jobs cannot", "set runs_dir=")
