"""One search, controlled until its plan is complete by controllers that are killed one after another.

First a sweep: a kill before, half way through and after the writing of each kind of journal event. Then kills at random
moments, some just as git or sbatch runs, some of the controller alone and some together with its children, while the
weather of `faults` blows. The plan grows by rounds until the kills are done; the last controller is left alone.
"""

import hashlib
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from client import Sandbox
from toy import Command, Toy

from autoresearch_hpc import history
from chaos.faults import COMMANDS, DAEMONS, TRIALS, FaultLog, Faults, Mix, weather
from chaos.wrappers import Wrappers

TAG = "chaos"
_KILLED_AT = Path(__file__).parents[1] / "killed_at.py"
_OUTAGE_S = 90  # a fault of Slurm's daemons, with the time that they take to come back
MOMENTS = ("before", "torn", "after")
NOT_SWEPT = {
    "round.shrunk",  # needs a budget that runs out, and leaves candidates untrained by intention
    "agent.calling",  # this search's agent calls nothing; tests/thinking.py kills those that do
    "agent.called",
    "round.analysed",  # of two knobs or more; tests/e2e/test_factorial_runs.py kills around it
}
SWEPT = tuple((event, moment) for event in history._HANDLERS if event not in NOT_SWEPT for moment in MOMENTS)
OVERRIDES = (
    "cluster.max_retries=50",  # of the trials that the faults destroy
    "cluster.late_result_s=5",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much of everything, at least. Each mix of the weather blows beside the others."""

    kills: int = 100
    faults: int = 60
    rounds: int = 10
    limit_s: float = 1200.0
    boundaries: Sequence[tuple[str, str]] = SWEPT
    longest_life_s: float = 7.0
    weather: Sequence[Mix] = (TRIALS, COMMANDS, DAEMONS)
    doubles: int = 5  # second controllers


class Stuck(AssertionError):
    """The time is over, or too much went wrong; the message says where it stood."""


class Campaign:
    """`run` brings the search to its end; what it saw meanwhile is for the verdict."""

    def __init__(self, cluster: Sandbox, toy: Toy, folder: Path, scale: Scale, seed: int) -> None:
        self.cluster, self.toy, self.scale = cluster, toy, scale
        self.log = FaultLog(folder / "faults.log")
        base = cluster.settings_environment
        self.wrappers = Wrappers(folder / "wrappers", base.get("PATH", os.environ["PATH"]))
        self._env = {**base, "PATH": self.wrappers.path}
        self._rng = random.Random(f"{seed} kills")
        self._seed = seed
        self._faults = self._own_faults("sweep")
        self.kills: Counter[str] = Counter()
        self.controllers = 0
        self.left: Counter[str] = Counter()  # controllers that ended by themselves
        self.problems: list[str] = []
        self.seen: list[tuple[int, str]] = []  # the journal's length and hash after each kill
        self.swept: set[tuple[str, str]] = set()
        self._max_rounds = 2
        self._begun = time.monotonic()
        self._stage = "the start"

    def run(self) -> None:
        self._sweep()
        with ExitStack() as stack:
            for number, mix in enumerate(self.scale.weather):
                faults, rng = self._own_faults(f"faults {number}"), random.Random(f"{self._seed} weather {number}")
                stack.enter_context(weather(faults, self.log, rng, mix))
            self._random_kills()
        self.wrappers.clear()
        self._finish()

    @property
    def faults(self) -> Counter[str]:
        """What has happened so far, by kind."""
        return self.log.counts() + self.wrappers.acts()

    def _own_faults(self, name: str) -> Faults:
        """With random numbers of its own, so that threads do not take each other's."""
        return Faults(self.cluster, self.toy, TAG, self.wrappers, self.log, random.Random(f"{self._seed} {name}"))

    # the three parts

    def _sweep(self) -> None:
        """A controller for each boundary, which kills itself there. Rare events are provoked."""
        provoke: dict[str, Callable[[Command], object]] = {
            "trial.dropped": lambda _: self._faults.worker_killed(),
            "trial.given_up": lambda _: self._faults.launch_failed(),
            "submit.refused": lambda _: self.wrappers.once("sbatch", "no-room"),
            "run.interrupted": self._terminate,
        }
        for event, moment in self.scale.boundaries:
            while (event, moment) not in self.swept:
                self._stage = f"the kill {moment} {event}"
                # run.stopped comes when the open round is the plan's last
                rounds = max(1, len(self._rounds()) - 1) if event == "run.stopped" else self._further_rounds()
                self.log.note(f"START to be killed {moment} {event}")
                words = self.toy.words(TAG, f"plan.max_rounds={rounds}")
                command = self.toy.start(str(_KILLED_AT), moment, event, "1", "--", *words, module="", env=self._env)
                self._watch(command, 60, each_second=provoke.get(event))
                if self._ended(command, f"{moment} {event}") == -signal.SIGKILL:
                    self.swept.add((event, moment))
                elif command.process.returncode == 0 and event == "run.stopped":
                    self.problems.append(f"no kill {moment} run.stopped: it was not written again")
                    break
            if event == "submit.refused":
                self.wrappers.clear("sbatch")

    def _random_kills(self) -> None:
        doubles = 0
        while self.kills.total() < self.scale.kills or self.faults.total() < self.scale.faults:
            self._stage = f"kill {self.kills.total() + 1}"
            command = self._start(self._further_rounds())
            if doubles < self.scale.doubles and self._rng.random() < 0.25:
                doubles += self._second_is_refused(command)
            program = self._rng.choices(["", "git", "sbatch"], [6, 2, 2])[0]
            with_children = self._rng.random() < 0.3
            longest_s, what = self.scale.longest_life_s, "at random"
            shortest_s = 0.05 if self.kills.total() < self.scale.kills else longest_s / 2  # only faults are missing
            life_s = self._rng.uniform(shortest_s, longest_s)
            if not program:
                self._watch(command, life_s)
            elif self._watch(command, 15, until=lambda c=command, p=program: self._children(c, p)):
                what = f"as {program} ran"
            if command.running:
                children = self._children(command) if with_children else []
                os.kill(command.pid, signal.SIGKILL)
                for child in children:
                    _kill(child)
                command.process.wait()
            self._ended(command, f"{what}{', children too' if with_children else ''}")

    def _finish(self) -> None:
        self._stage = "the last controller"
        rounds = max(self.scale.rounds, self._further_rounds() - 1)
        while True:
            command = self._start(rounds)
            self._watch(command, self.scale.limit_s)
            if self._ended(command, "never") == 0:
                return

    # a controller's life

    def _start(self, rounds: int) -> Command:
        self.log.note(f"START with plan.max_rounds={rounds}")
        return self.toy.search(TAG, f"plan.max_rounds={rounds}", env=self._env)

    def _watch(
        self,
        command: Command,
        for_s: float,
        *,
        until: Callable[[], object] | None = None,
        each_second: Callable[[Command], object] | None = None,
    ) -> bool:
        """Wait until the condition holds, the controller has ended, or the time is over; whether the condition held."""
        deadline, next_at = time.monotonic() + for_s, time.monotonic() + 1
        while command.running and time.monotonic() < deadline:
            if until and until():
                return True
            if time.monotonic() - self._begun > self.scale.limit_s:
                raise Stuck(f"not over after {self.scale.limit_s:.0f} s: {self.stands()}")
            if each_second and time.monotonic() > next_at:
                try:
                    each_second(command)
                except AssertionError as error:
                    self.log.note(f"not provoked: {error}")
                next_at = time.monotonic() + 1
            time.sleep(0.001 if until else 0.02)
        return False

    def _ended(self, command: Command, when: str) -> int:
        """Account for a controller; what is still alive is killed. Its exit status."""
        if command.running:
            command.kill()
            when = f"late: {when}"
        code = command.process.returncode
        self.controllers += 1
        if code == -signal.SIGKILL:
            self.kills[when] += 1
            self.log.note(f"KILL {self.kills.total()} pid {command.pid} {when}; the last event is {self._last_event()}")
        else:
            last = (command.said()[1].splitlines() or ["nothing"])[-1]
            self.left[
                f"exit {code}" + (f": {last.removeprefix('autoresearch_hpc: ').split(';')[0]}" if code else "")
            ] += 1
            self.log.note(f"EXIT {code} pid {command.pid}: {last}")
            if not (code == 0 or (code == 4 and self._outage()) or (code == 3 and "run.interrupted" in when)):
                self._problem(f"a controller left with exit status {code}: {last}")
        if "Traceback" in command.said()[1]:
            self._problem(f"a traceback: {command.said()[1]}")
        content = self._complete_journal()
        self.seen.append((len(content), hashlib.sha256(content).hexdigest()))
        return code

    def _outage(self) -> bool:
        """Whether Slurm was just about to be out of order: who is refused then may start again."""
        since = datetime.now(UTC) - timedelta(seconds=_OUTAGE_S)
        return any(f.everywhere and datetime.fromisoformat(f.at) > since for f in self.log.happened)

    def _terminate(self, command: Command) -> None:
        if self._has_the_run(command):
            command.process.terminate()

    def _has_the_run(self, command: Command) -> bool:
        return any(line.get("pid") == command.pid for line in self.toy.journal(TAG))

    def _second_is_refused(self, first: Command) -> bool:
        """Start another controller beside one that holds the lock; whether it was refused as it should."""
        self._watch(first, 15, until=lambda: self._has_the_run(first))
        second = self._start(self._further_rounds())
        self._watch(second, 30)
        code, (_, said) = second.process.poll(), second.said()
        named = socket.gethostname() in said and str(first.pid) in said
        refused = code == 2 and "another controller works on" in said and named
        if code is None or not (first.running or refused):  # the first one has left: this one has the run
            second.kill()
            self.kills["a second controller that had the run"] += 1
            self.controllers += 1
            return False
        self.controllers += 1
        if refused:
            self.log.fault("second controller", "refused")
        elif code != 4:
            self._problem(f"a second controller was not refused: exit status {code}: {said}")
        return refused

    def _children(self, command: Command, program: str = "") -> list[int]:
        """Processes below the controller that run this program (sbatch's dry runs do not count)."""
        found = []
        for pid in _below(command.pid):
            try:
                name = Path(f"/proc/{pid}/comm").read_text().strip()
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if not program or (name == program and b"--test-only" not in words):
                found.append(pid)
        return found

    # where it stands

    def stands(self) -> str:
        queue = "no answer"
        try:
            queue = self.cluster.run("squeue", "-r", "-o", "%F_%K %j %T %r")
        except AssertionError:
            pass
        lines = self.log.path.read_text().splitlines()[-15:] if self.log.path.exists() else []
        return "\n".join(
            [
                f"at {self._stage}, {self.kills.total()} kills, {len(self._rounds())} rounds closed,"
                f" the last event is {self._last_event()}",
                *lines,
                f"the queue: {queue}",
            ]
        )

    def _problem(self, text: str) -> None:
        self.problems.append(text)
        self.log.note(f"PROBLEM {text}")
        if len(self.problems) > 5:
            raise Stuck(f"too many problems: {self.problems}\n{self.stands()}")

    def _rounds(self) -> list[int]:
        return [line["round"] for line in self.toy.journal(TAG) if line["event"] == "round.closed"]

    def _further_rounds(self) -> int:
        """A plan that cannot be completed in a short life; it never shrinks."""
        self._max_rounds = max(self._max_rounds, len(self._rounds()) + 2)
        return self._max_rounds

    def _last_event(self) -> str:
        journal = self.toy.journal(TAG)
        return f"{journal[-1]['seq']} {journal[-1]['event']}" if journal else "none"

    def _complete_journal(self) -> bytes:
        path = self.toy.run_dir(TAG) / "journal.jsonl"
        content = path.read_bytes() if path.exists() else b""
        return content[: content.rfind(b"\n") + 1]


def _below(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    found = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(word) for word in (task / "children").read_text().split()]
    except OSError:  # it, or a thread of it, has just ended
        pass
    return found + [below for child in found for below in _below(child)]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
