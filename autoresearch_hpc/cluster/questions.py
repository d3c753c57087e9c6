"""What Slurm's commands tell of jobs: squeue and scontrol of those that slurmctld has in mind, sacct of all there were.

None stands for no answer, which is no news. A job is `<array>_<index>`. When the waiting rest of an array is cancelled,
Slurm keeps one record of it which no longer says which tasks those were: squeue gives N/A as their index, sacct none.
"""

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from autoresearch_hpc.cluster.commands import NOT_INSTALLED, Answer, expanded, run, warn_once
from autoresearch_hpc.cluster.protocol import JobState
from autoresearch_hpc.cluster.reasons import state

_WHOLE = {"SLURM_BITSTR_LEN": "0"}  # or long lists of tasks are cut off
_NAMES_SINCE = "now-30days"


def array_of(job: str) -> str:
    return job.partition("_")[0]


def index_of(job: str) -> int | None:
    """The task's index; None of a record that stands for what is left of an array."""
    index = job.partition("_")[2]
    return int(index) if index.isdigit() else None


def arrays_of(jobs: Iterable[str]) -> list[str]:
    return sorted({array_of(job) for job in jobs}, key=int)


def squeue(jobs: Collection[str]) -> dict[str, JobState] | None:
    """The states of these jobs' arrays' tasks, as far as slurmctld has them in mind.

    -r, because one line for all waiting tasks of an array would mix their reasons; Slurm's daemon is asked the same.
    """
    answer = _ask(["squeue", "-h", "-r", "-t", "all", "-j", ",".join(arrays_of(jobs)), "-o", "%F_%K|%T|%N|%r"])
    if answer is None:
        return None
    rows = [line.split("|", 3) for line in answer if line.count("|") >= 3]
    running = any(word == "RUNNING" and job in jobs for job, word, _, _ in rows)
    told = {job: state(word, node=node, reason=reason, own_running=running) for job, word, node, reason in rows}
    return told | _of_the_rest(jobs, told)


def _of_the_rest(jobs: Collection[str], told: Mapping[str, JobState]) -> dict[str, JobState]:
    rest = {array_of(job): state for job, state in told.items() if index_of(job) is None and state.ended}
    return {job: rest[array] for job in jobs if job not in told and (array := array_of(job)) in rest}


def squeue_named(name: str) -> set[str] | None:
    """The jobs of this name that slurmctld has in mind, of those of this user."""
    words = ["squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), f"--name={name}", "-o", "%F_%K|%T|%N"]
    lines = _ask(words)
    return None if lines is None else _accepted(lines)


def _accepted(lines: Iterable[str]) -> set[str]:
    """The jobs of these rows (id, state, node), without those that Slurm has refused: it may keep a record of them."""
    rows = [line.split("|", 2) for line in lines if line.count("|") >= 2]
    return {job for job, word, node in rows if not (word == "FAILED" and node in ("", "None assigned"))}


def scontrol(array: str) -> dict[str, JobState] | None:
    """The states of an array's tasks, as `scontrol show job` has them."""
    lines = _ask(["scontrol", "-o", "show", "job", array])
    if lines is None:
        return None
    found = {}
    for line in lines:
        fields = dict(re.findall(r"(\w+)=(\S*)", line))
        told = state(fields.get("JobState", ""), node=fields.get("NodeList", ""), reason=fields.get("Reason", ""))
        for index in expanded(fields.get("ArrayTaskId", "")):
            found[f"{array}_{index}"] = told
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A job in Slurm's accounting, all of its attempts together."""

    state: JobState
    gpu_s: float
    node: str | None = None  # the last that it was on, be it only to fail there


class Accounting:
    """sacct, as long as there is a point in asking it."""

    def __init__(self, gpus_each: int) -> None:
        self._gpus_each = gpus_each
        self.off = False  # there is none here: no slurmdbd, no sacct

    def jobs(self, jobs: Collection[str]) -> dict[str, Account] | None:
        fields = "JobID,JobName,State,ElapsedRaw,NodeList,AllocTRES"
        lines = self._ask(["-D", "-j", ",".join(arrays_of(jobs)), "-o", fields])
        if lines is None:
            return None
        attempts: dict[str, list[list[str]]] = defaultdict(list)
        waited: dict[str, list[list[str]]] = defaultdict(list)  # rows of many tasks at once: those that never began
        for line in lines:
            first, *middle, elapsed, nodes, tres = line.split("|")
            row = ["|".join(middle[:-1]), middle[-1], elapsed, nodes, tres]  # a name may hold anything
            for job in _tasks(first):
                (waited if "[" in first else attempts)[job].append(row)
        attempts |= {job: rows for job, rows in waited.items() if job not in attempts}
        found = {}
        for job, rows in attempts.items():
            name, word, _, nodes, _ = rows[-1]
            own = [row for row in rows if row[0] == name]  # ids begin again at 1 some day: names do not come twice
            places = [place for row in own if (place := state(row[1], node=row[3]).node)]
            found[job] = Account(
                state=state(word, node=nodes),
                gpu_s=sum(self._gpu_s(row[2], row[4]) for row in own),
                node=places[-1] if places else None,
            )
        rest = _of_the_rest(jobs, {job: account.state for job, account in found.items()})
        return found | {job: Account(state=ended, gpu_s=0.0) for job, ended in rest.items()}

    def _gpu_s(self, elapsed: str, tres: str) -> float:
        seconds = int(elapsed) if elapsed.isdigit() else 0
        total = re.search(r"gres/gpu=(\d+)", tres)
        gpus = int(total[1]) if total else sum(map(int, re.findall(r"gres/gpu:[^=,]+=(\d+)", tres)))
        return float(seconds * (gpus or self._gpus_each))

    def named(self, name: str) -> set[str] | None:
        """The jobs of this name."""
        lines = self._ask(["-S", _NAMES_SINCE, f"--name={name}", "-o", "JobID,State,NodeList"])
        return None if lines is None else {job for first in _accepted(lines) for job in _tasks(first)}

    def _ask(self, words: list[str]) -> list[str] | None:
        if self.off:
            return None
        answer = run(["sacct", "-X", "-n", "-P", *words], extra=_WHOLE)
        if answer.ok:
            return [line for line in answer.lines if line]
        self.off = answer.code == NOT_INSTALLED or "accounting storage is disabled" in answer.err.lower()
        warn_once("there is no sacct here: states are squeue's alone" if self.off else _failed("sacct", answer))
        return None


def _tasks(job: str) -> list[str]:
    """`7_[0-2%1]` -> 7_0, 7_1, 7_2; `7` is what it is."""
    array, _, indices = job.partition("_")
    return [f"{array}_{index}" for index in expanded(indices)] or [array]


def _ask(words: list[str]) -> list[str] | None:
    answer = run(words, extra=_WHOLE)
    if answer.ok:
        return answer.lines
    if "Invalid job id" in answer.err:  # of jobs that are all forgotten
        return []
    warn_once(_failed(words[0], answer))
    return None


def _failed(command: str, answer: Answer) -> str:
    return f"{command} failed: {answer.reason}"
