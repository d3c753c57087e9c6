"""What Slurm itself says of a run: sacct of its arrays, squeue of the moment at which a job was over."""

import threading
import time

from client import FINAL_STATES, Sandbox
from toy import Toy


class Witness:
    """What sacct says of a run's arrays."""

    def __init__(self, cluster: Sandbox, toy: Toy, tag: str) -> None:
        self._cluster, self._toy, self._tag = cluster, toy, tag

    def arrays(self, *, ended: int) -> dict[str, list[str]]:
        """Array name -> the states of its tasks, as soon as so many tasks have ended."""
        uid = self._toy.journal(self._tag)[0]["uid"]
        rows: list[list[str]] = []

        def told() -> bool:
            words = ["sacct", "-X", "-n", "-P", "-S", "now-1hour", "-o", "JobID,JobName%200,State"]
            lines = self._cluster.run(*words).splitlines()
            rows[:] = [row for row in (line.split("|") for line in lines) if f"-{uid}-" in row[1]]
            return sum(row[2] not in ("PENDING", "RUNNING") for row in rows) == ended

        self._cluster.wait_until(told, 10, f"{ended} ended tasks in sacct")
        names = {job.split("_")[0]: name for job, name, _ in rows}
        assert len(set(names.values())) == len(names), f"a name was submitted twice: {names}"
        found: dict[str, list[str]] = {}
        for _, name, state in rows:
            found.setdefault(name.replace(f"{self._tag}-{uid}-", ""), []).append(state)
        return found


class Clock:
    """When squeue first listed each task in a state, by this machine's clock; it looks four times a second."""

    def __init__(self, cluster: Sandbox) -> None:
        self._cluster, self._over = cluster, threading.Event()
        self._seen: dict[str, dict[str, float]] = {}  # task -> "STATE" or "STATE reason" -> when
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.25):
            lines = self._cluster.run("squeue", "-h", "-r", "-t", "all", "-o", "%F_%K|%T|%r").splitlines()
            now = time.time()
            for task, state, reason in (line.split("|", 2) for line in lines):
                seen = self._seen.setdefault(task, {})
                seen.setdefault(state, now)
                seen.setdefault(f"{state} {reason.split(',')[0]}", now)

    def at(self, task: str, *words: str) -> float:
        """The first of these: states, or states with reasons; any final state if none is named."""
        found = [when for word, when in self._seen.get(task, {}).items() if word in (words or FINAL_STATES)]
        assert found, f"{task} was never {words or 'over'}, only {self._seen.get(task)}"
        return min(found)

    def stop(self) -> None:
        self._over.set()
        self._thread.join(10)
