"""What happens to a search beside the kills of its controller: to Slurm's daemons, its nodes, its commands, to trials.

Every fault that took place is written into a log with its time and the trials that it hit, so that the verdict can tell
a trial that was lost for a reason from one that was lost by us.
"""

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import daemons
from client import Sandbox
from settings import load
from toy import Toy

from chaos.wrappers import LASTING, ONCE, Wrappers

_HEAL_S = 90
_NODES = ("n0", "n1", "n2", "n3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """One entry of the log. `hit`: the trials that it was done to; `everywhere`: any trial in the queue may suffer."""

    at: str
    kind: str
    what: str
    hit: frozenset[str]
    everywhere: bool


class FaultLog:
    """Faults, kills and notes, in memory and as lines of a file that is there to be read after a failure."""

    def __init__(self, path: Path) -> None:
        self.path, self.happened = path, list[Happened]()
        self._begun, self._lock = time.monotonic(), threading.Lock()

    def fault(self, kind: str, what: str = "", *, hit: set[str] | None = None, everywhere: bool = False) -> None:
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        self.happened.append(Happened(at=now, kind=kind, what=what, hit=frozenset(hit or ()), everywhere=everywhere))
        self.note(f"FAULT {kind}: {what} {' '.join(sorted(hit or ()))}".rstrip(": "))

    def note(self, text: str) -> None:
        line = f"{datetime.now(UTC):%H:%M:%S.%f} {time.monotonic() - self._begun:8.2f} s  {text}\n"
        with self._lock, self.path.open("a") as file:
            file.write(line)

    def counts(self) -> Counter[str]:
        return Counter(event.kind for event in self.happened)


class Faults:
    """Each method without an underscore makes one fault, and returns whether it could.

    `trials` and the like are looked up in the run's own files and in squeue at the moment of the fault.
    """

    def __init__(self, cluster: Sandbox, toy: Toy, tag: str, wrappers: Wrappers, log: FaultLog, rng: random.Random):
        self._cluster, self._toy, self._tag = cluster, toy, tag
        self._wrappers, self._log, self._rng = wrappers, log, rng
        self._run = toy.run_dir(tag)

    # to trials

    def worker_killed(self) -> bool:
        """SIGKILL to the worker, as the kernel does when memory is short: no result, the job FAILED."""
        found = self._working()
        for trial, claim in self._rng.sample(found, len(found)):
            pid = claim["pid"]
            try:
                if b"autoresearch_hpc.trial.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    self._log.fault("worker killed", f"pid {pid}", hit={trial})
                    return True
            except OSError:
                continue
        return False

    def task_requeued(self) -> bool:
        return self._scontrol("task requeued", "requeue")

    def launch_failed(self) -> bool:
        """Held by Slurm in SPECIAL_EXIT, which a failed launch also may be: such a job never runs again."""
        return self._scontrol("job held by Slurm", "requeuehold", "State=SpecialExit")

    def _scontrol(self, kind: str, *words: str) -> bool:
        running = self._tasks("RUNNING")
        if not running:
            return False
        task = self._rng.choice(sorted(running))
        trial = self._trials().get(task)
        self._cluster.run("scontrol", *words, task)
        self._log.fault(kind, task, hit={trial} if trial else None, everywhere=trial is None)
        return True

    def result_damaged(self) -> bool:
        """A torn, empty or strange result.json appears while the trial is at work; its worker has the last word."""
        whole = next(self._run.glob("rounds/00/*/trials/*/result.json"), None)
        text = whole.read_text() if whole else "{}"
        texts = {"torn": text[: len(text) // 2], "empty": "", "another trial's": text, "no object": "[1, 2"}
        found = self._working()
        for trial, _ in self._rng.sample(found, len(found)):
            how = self._rng.choice(sorted(texts))
            try:
                with (self._folder(trial) / "result.json").open("x") as file:  # never over a worker's own
                    file.write(texts[how])
            except OSError:
                continue
            self._log.fault("result damaged", how, hit={trial})
            if self._rng.random() < 0.5:
                (self._run / "inbox" / trial).touch()
            return True
        return False

    def stray_announcement(self) -> bool:
        """Announcements of a trial that is at work, of one that is long done, and of none."""
        names = [*(trial for trial, _ in self._working()[:1]), "r00-c00-t0", "no trial's"]
        if not (self._run / "inbox").is_dir():
            return False
        for name in names:
            (self._run / "inbox" / name).touch()
        self._log.fault("stray announcement", ", ".join(names))
        return True

    # to nodes and daemons; each returns when all is up again

    def node_crashed(self) -> bool:
        """The node dies with its jobs, which Slurm runs again, and comes back."""
        busy = self._cluster.run("squeue", "-h", "-r", "-t", "RUNNING", "-o", "%N").split()
        node = self._rng.choice(sorted(busy) or _NODES)
        tasks, trials = self._tasks("RUNNING", "-w", node), self._trials()
        self._log.fault("node crashed", node, hit={trials[task] for task in tasks if task in trials}, everywhere=True)
        self._cluster.kill_node(node)
        time.sleep(self._rng.uniform(1, 6))
        self.heal()
        return True

    def slurmctld_killed(self) -> bool:
        return self._killed("slurmctld", self._rng.uniform(1, 8), everywhere=True)

    def slurmdbd_killed(self) -> bool:
        return self._killed("slurmdbd", self._rng.uniform(5, 15), everywhere=False)

    def _killed(self, daemon: str, for_s: float, *, everywhere: bool) -> bool:
        self._log.fault(f"{daemon} killed", f"for {for_s:.0f} s", everywhere=everywhere)
        self._signal(daemon, signal.SIGKILL)
        time.sleep(for_s)
        self.heal()
        return True

    def slurmctld_stopped(self) -> bool:
        """Alive and silent: connections are taken and nothing is answered."""
        for_s = self._rng.uniform(10, 30)
        self._log.fault("slurmctld stopped", f"for {for_s:.0f} s", everywhere=True)
        self._signal("slurmctld", signal.SIGSTOP)
        time.sleep(for_s)
        self.heal()
        return True

    # to Slurm's commands

    def sbatch_misbehaves(self) -> bool:
        """The next submission only; counted by the wrapper when it happens."""
        mode = self._rng.choice(ONCE["sbatch"])
        self._log.note(f"the next sbatch: {mode}")
        self._wrappers.once("sbatch", mode)
        return True

    def squeue_misbehaves(self) -> bool:
        return self._lasting("squeue")

    def sacct_misbehaves(self) -> bool:
        return self._lasting("sacct")

    def _lasting(self, command: str) -> bool:
        mode, for_s = self._rng.choice(LASTING[command]), self._rng.uniform(3, 12)
        self._log.note(f"{command}: {mode} for {for_s:.0f} s")
        self._wrappers.lasting(command, mode)
        time.sleep(for_s)
        self._wrappers.clear(command)
        return True

    # what there is to hit, and what brings all back

    def heal(self) -> None:
        """Every daemon of the cluster runs, and every node takes jobs, as after an administrator's work."""
        self._signal("slurmctld", signal.SIGCONT)
        deadline = time.monotonic() + _HEAL_S
        while True:
            try:
                self._cluster.tool("up")
                self._resume_drained()
                for node in _NODES:
                    self._cluster.start_slurmd(node)
                self._log.note("the cluster is whole")
                return
            except AssertionError as error:
                if time.monotonic() > deadline:
                    raise
                self._log.note(f"not yet whole: {error}")

    def _resume_drained(self) -> None:
        """Slurm drains a node whose processes did not end in time; somebody has to say that it is well again."""
        for line in self._cluster.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %t").splitlines():
            node, state = line.split()
            if state.startswith(("drain", "drng")):
                self._cluster.run("scontrol", "update", f"nodename={node}", "state=resume")
                self._log.note(f"{node} was drained by Slurm, and is resumed")

    def _signal(self, daemon: str, number: signal.Signals) -> None:
        settings = load(self._cluster.state)
        assert settings
        if pid := daemons.pid_of(settings, daemon):
            os.kill(pid, number)

    def _tasks(self, state: str, *words: str) -> set[str]:
        lines = self._cluster.run("squeue", "-h", "-r", "-t", state, "-o", "%F_%K %j", *words).splitlines()
        return {task for task, name in (line.split(maxsplit=1) for line in lines) if name.startswith(f"{self._tag}-")}

    def _trials(self) -> dict[str, str]:
        """Task -> trial."""
        done = [line["jobs"] for line in self._toy.journal(self._tag) if line["event"] == "submit.done"]
        return {job: trial for jobs in done for trial, job in jobs.items()}

    def _working(self) -> list[tuple[str, dict[str, Any]]]:
        """Trials of the newest round that a worker has claimed and not finished, with the newest claim of each."""
        rounds = sorted(self._run.glob("rounds/*"))
        found = []
        for folder in sorted(rounds[-1].glob("*/trials/*")) if rounds else ():
            claims = sorted(folder.glob("claim-*.json"), key=lambda path: int(path.stem.removeprefix("claim-")))
            if claims and not (folder / "result.json").exists():
                try:
                    found.append((f"{folder.parts[-3]}-{folder.name}", json.loads(claims[-1].read_text())))
                except ValueError:  # just being written
                    continue
        return found

    def _folder(self, trial: str) -> Path:
        candidate, _, index = trial.rpartition("-")
        return self._run / "rounds" / candidate[1:3] / candidate / "trials" / index


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Faults that come one at a time: the mean pause between two, and how often each comes in a round of all."""

    every_s: float
    share: Mapping[str, int]


TRIALS = Mix(
    every_s=1.5,
    share={"worker_killed": 3, "task_requeued": 3, "launch_failed": 1, "result_damaged": 3, "stray_announcement": 2},
)
COMMANDS = Mix(every_s=2.5, share={"sbatch_misbehaves": 4, "squeue_misbehaves": 1, "sacct_misbehaves": 1})
DAEMONS = Mix(every_s=8, share={"node_crashed": 3, "slurmctld_killed": 2, "slurmctld_stopped": 1, "slurmdbd_killed": 1})


@contextmanager
def weather(faults: Faults, log: FaultLog, rng: random.Random, mix: Mix) -> Iterator[None]:
    """Faults of the mix in random order, one after another, in a thread; the cluster is whole again on leaving."""
    over, trouble = threading.Event(), list[Exception]()

    def blow() -> None:
        bag: list[str] = []
        while not over.wait(rng.uniform(0.2 * mix.every_s, 1.8 * mix.every_s)):
            if not bag:
                bag = [name for name, count in mix.share.items() for _ in range(count)]
                rng.shuffle(bag)
            name = bag.pop()
            try:
                _patiently(getattr(faults, name), over)
            except Exception as error:  # noqa: BLE001 - told at the end; the search goes on
                trouble.append(error)
                log.note(f"TROUBLE {name}: {error!r}")

    thread = threading.Thread(target=blow, name="weather", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(120)
    faults.heal()
    assert not thread.is_alive(), "a fault did not come to its end"
    assert not trouble, trouble


def _patiently(fault: Callable[[], bool], over: threading.Event, for_s: float = 6.0) -> None:
    """A fault that needs a trial at work waits for one."""
    deadline = time.monotonic() + for_s
    while not over.is_set() and time.monotonic() < deadline:
        try:
            if fault():
                return
        except AssertionError:  # a command of Slurm's failed: the task has just ended
            pass
        time.sleep(0.1)
