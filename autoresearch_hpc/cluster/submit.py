"""Handing an array to sbatch, and what sbatch's answer means.

submitit writes the batch script. The answer is read here: sites wrap sbatch, and what a refusal means decides whether
the submission is tried again.
"""

import contextlib
import re
import uuid
from collections.abc import Sequence
from pathlib import Path

import submitit
from submitit.core.utils import JobPaths
from submitit.slurm.slurm import _make_sbatch_string

from autoresearch_hpc.cluster.commands import Answer, run, tied
from autoresearch_hpc.cluster.protocol import connection_variables, job_environment
from autoresearch_hpc.errors import ClusterError, NoAnswerError, NoRoomError

LIMIT_S = 60.0  # of sbatch: what takes longer is looked for in the queue
_SUBMITTED = re.compile(r"^\s*Submitted batch job (\d+)(?: on cluster \S+)?\s*$", re.MULTILINE)
# sbatch itself would now wait and try again for two minutes. It says so once, before its first pause of a second.
_WAITING_FOR_ROOM = re.compile(r"sleeping and retrying|temporarily disabled, retrying")
_NO_ROOM = re.compile(
    r"\w*(MaxSubmitJob|GrpSubmitJob)\w*|Resource temporarily unavailable|temporarily unable to accept"
    r"|job queue full|Job creation temporarily disabled"
)
_POLICY = "Job violates accounting/QOS policy"  # of a limit on jobs, and of one on time or size
_PREFIX = re.compile(r"^(sbatch: )?(error: )?((allocation failure|Batch job submission failed): )?")
_NODES = re.compile(r"node configuration is not available|invalid node name|node count", re.IGNORECASE)


class ArrayExecutor(submitit.SlurmExecutor):
    """submitit's executor, submitting one command as an array of any size.

    sbatch exports the whole environment that it is given into the job, so it is given no more than the job may have.
    """

    def __init__(self, folder: Path | str, pass_env: Sequence[str] = ()) -> None:
        super().__init__(folder)
        self._environment = job_environment(pass_env) | connection_variables()

    def submit_tasks(self, command: str, count: int) -> str:
        """Call sbatch once; the array's job id. Raises NoRoomError, NoAnswerError, ClusterError."""
        self.parameters["map_count"] = count
        name = uuid.uuid4().hex
        script = Path(self.folder) / f".submission_file_{name}.sh"
        script.write_text(self._make_submission_file_text(command, name))
        words = tied(["sbatch", str(script)])
        array = job_id(run(words, limit_s=LIMIT_S, until=_WAITING_FOR_ROOM, environment=self._environment))
        with contextlib.suppress(OSError):  # the array is in, whatever its script is called
            script.replace(JobPaths(folder=self.folder, job_id=array).submission_file)
        return array

    def test(self, count: int = 1) -> None:
        """Ask whether such an array would be accepted. Raises as submit_tasks does."""
        self.parameters["map_count"] = count
        script = Path(self.folder) / "check.sh"
        script.write_text(self._make_submission_file_text("true", "check"))
        words = ["sbatch", "--test-only", str(script)]
        answer = run(words, until=_WAITING_FOR_ROOM, environment=self._environment)
        if not answer.ok:
            raise refusal(answer)

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        folder = str(self.folder).replace("%", "%%")  # in the names of log files Slurm fills in %x and the like
        return str(_make_sbatch_string(command=command, folder=folder, **self.parameters))


def job_id(answer: Answer) -> str:
    """The id that sbatch told, whatever a site's wrapper prints around it. Raises `refusal` where there is none."""
    if found := _SUBMITTED.findall(answer.out):
        return str(found[-1])
    raise refusal(answer)


def refusal(answer: Answer) -> ClusterError:
    """What an sbatch that told no job id said, in one line; its general last line often hides which value was meant."""
    said = _said(answer)
    if answer.stopped_early:  # in sbatch's own pause: surely not in
        return NoRoomError(f"Slurm takes no more jobs now: {said}", "wait until some have ended")
    if answer.silent:
        return NoAnswerError(f"sbatch got no answer: {said}", "look whether slurmctld is up: scontrol ping")
    if _NO_ROOM.search(answer.err) or said.startswith(_POLICY):  # nothing but the general text: one of the former
        return NoRoomError(f"Slurm takes no more jobs now: {said}", "wait until some have ended")
    if answer.ok or answer.code < 0 or not answer.err.strip():
        return NoAnswerError(f"sbatch told no job id: {said}", "look at what sbatch prints here")
    return ClusterError(f"sbatch refused: {said}", "correct cluster.* or ask what your site allows")


def _said(answer: Answer) -> str:
    text = answer.err if answer.err.strip() else answer.out
    lines = [_PREFIX.sub("", line.strip()) for line in text.splitlines()]
    told = list(dict.fromkeys(line for line in lines if line and not line.startswith("Try ")))
    return ", ".join(told) or f"exit status {answer.code} and no reason given"


def about_nodes(error: ClusterError) -> bool:
    """Whether a refusal may be due to nodes that are excluded."""
    return bool(_NODES.search(str(error)))


def limit_s(time: object) -> float | None:
    """Seconds of a time limit as sbatch takes it: minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s; None of anything else."""
    matched = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(time).strip())
    if not matched:
        return None
    days, *rest = matched.groups()
    parts = [int(text) for text in rest if text is not None]
    if days is not None:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, minutes, seconds = [0, *parts, 0][:3]
    return float((int(days or 0) * 24 + hours) * 3600 + minutes * 60 + seconds)
