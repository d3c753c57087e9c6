"""Searches whose candidates each meet a fault of their own, told by the knob MODE of their script.

They run with the intervals that users have, so that the seconds that are measured are those of a real run.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from client import Sandbox
from toy import Toy
from witness import Clock

LIMIT_S = 15.0  # from Slurm's knowing to the journal

SCRIPT = """\
import json, os, resource, signal, sys, time
MODE = "fine"
LR = 0.1
trial, attempt = os.path.basename(os.path.dirname(os.getcwd())), int(os.environ.get("SLURM_RESTART_COUNT", 0))
with open(os.environ["TRAINED"], "a") as file:
    file.write(os.getcwd() + "\\n")


class OutOfMemoryError(RuntimeError):
    __module__ = "torch"


if MODE == "deadly":  # takes its worker with it, each time
    with open("../claim-0.json") as file:
        os.kill(json.load(file)["pid"], signal.SIGKILL)
if MODE == "exit":
    sys.exit(3)
if MODE == "raise":
    {}["weights"]
if MODE == "memory":
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    bytearray(4 << 30)
if MODE == "cuda":
    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB")
if MODE == "abort":
    os.abort()
if MODE == "hang":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(600)
if MODE == "silent":
    sys.exit()
if MODE == "nan":
    print("loss: nan")
    sys.exit()
if MODE.startswith("long"):
    time.sleep(float(MODE.split()[1]))
elif MODE == "cut":  # the first life outlasts Slurm's patience with its node, and ends in the middle of the second
    candidate = os.getcwd().split("/trials/")[0]
    if not attempt and trial == "t0":
        for _ in range(110):
            time.sleep(1)
            with open(os.environ["TRAINED"]) as file:
                if sum(line.startswith(candidate + "/") for line in file) > 1:
                    break
        time.sleep(8)
    else:
        time.sleep(20)
elif not MODE.startswith("fine") and trial == "t0" and attempt < (2 if MODE == "older" else 1):
    time.sleep(600)  # whatever is done to it, is done meanwhile
else:
    time.sleep(2)
print("loss:", 1 + LR)
"""

PLAN = """\
# @package _global_
defaults:
  - override /task: command
  - override /agent: plan
  - override /decide: best
plan:
  name: faults
  baseline: {baseline}
  rounds: {rounds}
task:
  script: fit.py
  editable: [fit.py]
  command: {python} -S fit.py
  train_s: {train_s}
  grace_s: 1
  startup_limit_s: 10
  metric: {{name: loss, regex: 'loss: (\\S+)'}}
"""


class Faulty:
    """A search with one candidate for each mode: `rounds` lists the modes of each round's candidates.

    The first round shares its array with the baseline, which is fine, unless `baseline` is "alone".
    """

    def __init__(
        self,
        make: Callable[..., Toy],
        cluster: Sandbox,
        tag: str,
        *rounds: Sequence[str],
        overrides: Sequence[str] = (),
        train_s: float = 120,
        baseline: str = "joined",
        cause: str = "",
    ) -> None:
        """`cause` is an override that makes the fault; a search that is resumed may do without."""
        self.cluster, self.tag, self._cause = cluster, tag, cause
        self.node = ""  # that is hit
        self.moment = 0.0  # of what was done to it
        self.said = ""  # standard error of the controller that gave up
        self._overrides = overrides
        self.toy = make(f'it\'s {tag} 5% %x "é"', cluster="slurm", fast=False)
        self.toy.write("fit.py", SCRIPT)
        number, planned = 0, []
        self.candidates: dict[str, str] = {}  # mode -> id, of the first one of the mode
        for index, modes in enumerate(rounds):
            candidates = []
            for position, mode in enumerate(modes):
                number += 1
                candidates.append({"knobs": {"MODE": mode, "LR": round(0.1 + number / 1000, 4)}})
                first = (index == 0) if baseline == "joined" else 0
                round_ = index + (baseline == "alone")
                self.candidates.setdefault(mode, f"r{round_:02d}-c{position + first:02d}")
            planned.append({"candidates": candidates})
        settings = {"baseline": baseline, "rounds": json.dumps(planned), "python": sys.executable, "train_s": train_s}
        self.toy.write("conf/round/toy.yaml", PLAN.format(**settings))
        self.toy.commit()

    def start(self, *, with_cause: bool = True) -> None:
        cause = [self._cause] if self._cause and with_cause else []
        self.command = self.toy.search(self.tag, *self._overrides, *cause, env=self.cluster.settings_environment)

    # what happens

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = 60) -> Any:
        """What condition gives as soon as it gives anything, while the controller lives."""
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert self.command.running, f"{self.tag}: the controller left before {what}: {self.command.said()}"
            assert time.monotonic() < deadline, f"{self.tag}: no {what} within {timeout_s} s: {self.command.said()}"
            time.sleep(0.1)
        return found

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.toy.journal(self.tag) if line["event"] == event]

    def jobs(self) -> dict[str, str]:
        """Trial -> task."""
        return {trial: job for line in self.events("submit.done") for trial, job in line["jobs"].items()}

    def job(self, mode: str, trial: str = "t0") -> str:
        id_ = f"{self.candidates[mode]}-{trial}"
        return self.until(lambda: self.jobs().get(id_), f"job of {id_}")

    def folder(self, mode: str, trial: str = "t0") -> Path:
        candidate = self.candidates[mode]
        return self.toy.run_dir(self.tag) / "rounds" / candidate[1:3] / candidate / "trials" / trial

    def training(self, mode: str, attempt: int = 0) -> dict[str, Any]:
        """Wait until a first trial's attempt is in its script; its claim."""
        claim = self.folder(mode) / f"claim-{attempt}.json"

        def begun() -> bool:
            marks = self.toy.trained_log.read_text("utf-8").splitlines() if self.toy.trained_log.exists() else []
            return claim.exists() and marks.count(f"{self.folder(mode)}/work") > attempt

        self.until(begun, f"attempt {attempt} of {mode}", 90)
        return json.loads(claim.read_text())

    def signal_worker(self, mode: str, number: signal.Signals, attempt: int = 0) -> None:
        os.kill(self.training(mode, attempt)["pid"], number)

    # what came of it

    def trials(self, mode: str) -> list[dict[str, Any]]:
        """Results in the journal of a candidate's trials, one after another."""
        return self.results(self.candidates[mode])

    def results(self, candidate: str) -> list[dict[str, Any]]:
        return [line["result"] for line in self.events("trial.done") if line["result"]["candidate"] == candidate]

    def statuses(self) -> dict[str, list[str]]:
        """Mode -> the statuses of its candidate's trials."""
        return {mode: [result["status"] for result in self.trials(mode)] for mode in self.candidates}

    def done_at(self, mode: str, trial: str = "t0") -> float:
        wanted = f"{self.candidates[mode]}-{trial}"
        (at,) = [line["at"] for line in self.events("trial.done") if line["trial"] == wanted]
        return datetime.fromisoformat(at).timestamp()

    def tell(self, fault: str, mode: str, clock: Clock | None, *words: str, since: float | None = None) -> None:
        """Print a line of the table, and check that it took no longer than it may, since squeue told of it."""
        result = self.trials(mode)[0]
        if since is None:
            assert clock
            since = clock.at(self.jobs()[result["trial"]], *words)
        seconds = max(0.0, self.done_at(mode) - since)
        print(f"FAULT {fault:58} | {result['status']:9} | {seconds:4.1f} s")
        assert seconds <= LIMIT_S, f"{fault}: {seconds:.1f} s"

    def told_by_worker(self, fault: str, mode: str) -> None:
        """The same for a fault that the worker reports itself: since its result."""
        at = datetime.fromisoformat(self.trials(mode)[0]["ended_at"]).timestamp()
        self.tell(fault, mode, None, since=at)

    def first_nodes(self) -> dict[str, str]:
        """Mode -> the node of its candidate's first life."""
        jobs = {mode: self.jobs()[f"{candidate}-t0"] for mode, candidate in self.candidates.items()}
        rows = self.cluster.sacct(*jobs.values(), fields="JobID,NodeList", duplicates=True)
        first = {row["JobID"]: row["NodeList"] for row in reversed(rows)}
        return {mode: first[job] for mode, job in jobs.items()}

    def nodes(self, mode: str) -> list[str | None]:
        """Where a candidate's trials ran, one after another."""
        return [(result["slurm"] or {}).get("nodelist") for result in self.trials(mode)]

    def warnings(self, text: str) -> list[str]:
        return [line for line in self.log().splitlines() if "WARNING" in line and text in line]

    def log(self) -> str:
        return (self.toy.run_dir(self.tag) / "controller.log").read_text("utf-8")

    def accepted_once(self) -> None:
        """Every trial has one result in the journal, and every candidate at most one that counts."""
        told = [line["trial"] for line in self.events("trial.done")]
        assert len(told) == len(set(told)), told
        dropped = {line["trial"] for line in self.events("trial.dropped")}
        counting = [trial.rpartition("-")[0] for trial in told if trial not in dropped]
        assert len(counting) == len(set(counting)), counting


class Stage:
    """Searches that run at the same time on one cluster, each in a thread that also makes its faults."""

    def __init__(self, root: Path, cluster: Sandbox) -> None:
        self.cluster, self.clock = cluster, Clock(cluster)
        self._root, self._toys = root, list[Toy]()
        self._pool = ThreadPoolExecutor(max_workers=16)
        self._acts: dict[str, Future[Faulty]] = {}

    def put_on(self, tag: str, act: Callable[[Faulty], None], *rounds: Sequence[str], **settings: Any) -> None:
        """Start a search; `act` makes its faults and returns when its controller has ended."""

        def play() -> Faulty:
            faulty = Faulty(self._toy, self.cluster, tag, *rounds, **settings)
            faulty.start()
            act(faulty)
            return faulty

        self._acts[tag] = self._pool.submit(play)

    def _toy(self, name: str, **settings: Any) -> Toy:
        self._toys.append(Toy(self._root / name, **settings))
        return self._toys[-1]

    def played(self, tag: str) -> Faulty:
        """The search once it is over; raises what went wrong meanwhile."""
        return self._acts[tag].result(timeout=240)

    def close(self) -> None:
        for toy in list(self._toys):
            toy.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.clock.stop()
        self.cluster.cancel_all()
