"""A sandbox cluster as tests see it: booted by the same command that people type, asked with Slurm's own commands."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from settings import SandboxError, load

_TOOL = Path(__file__).with_name("cluster.py")
FINAL_STATES = frozenset(
    "COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL OUT_OF_MEMORY BOOT_FAIL DEADLINE PREEMPTED".split()
)


@contextlib.contextmanager
def booted(state: Path, *options: str) -> Iterator["Sandbox"]:
    """A cluster in the folder state, with options of `up`; stopped on leaving, and also if this process is killed."""
    sandbox = Sandbox(state)
    try:
        sandbox.tool("up", "--guard", str(os.getpid()), *options)
        yield sandbox
    finally:
        sandbox.tool("down")
        shutil.rmtree(state / "database", ignore_errors=True)  # the logs stay, for a look after a failure


class Sandbox:
    """Commands and waits on one cluster. A command that fails raises AssertionError with what it said."""

    def __init__(self, state: Path) -> None:
        self.state = state

    @property
    def settings_environment(self) -> dict[str, str]:
        """The variables that point Slurm's commands to this cluster."""
        settings = load(self.state)
        if settings is None:
            raise SandboxError(f"there is no cluster in {self.state}")
        return settings.client_environment()

    @property
    def env(self) -> dict[str, str]:
        """A whole environment for a child process: this one's without another cluster's or job's SLURM_ variables."""
        return {k: v for k, v in os.environ.items() if not is_slurm_variable(k)} | self.settings_environment

    def tool(self, *words: str) -> str:
        return _run([sys.executable, str(_TOOL), "--state", str(self.state), *words], dict(os.environ))

    def run(self, *argv: str, cwd: Path | None = None) -> str:
        """Any command in the cluster's environment: its standard output."""
        return _run(list(argv), self.env, cwd)

    def sbatch(self, command: str, *options: str, cwd: Path | None = None) -> str:
        """Submit a shell command; the job's id. Output goes to /dev/null unless the options say otherwise."""
        script = f"#!/bin/sh\n{command}\n"
        argv = ["sbatch", "--parsable", "--output=/dev/null", *options]
        return _run(argv, self.env, cwd, script).strip().split(";")[0]

    def squeue(self, *job_ids: str) -> dict[str, str]:
        """Task (`12_3`, or `12`) -> state, of the jobs that slurmctld still knows, ended ones included."""
        words = ["squeue", "-h", "-r", "-t", "all", "-o", "%i %T"]
        answer = self.run(*words, *(["-j", ",".join(job_ids)] if job_ids else []))
        return dict(line.split(maxsplit=1) for line in answer.splitlines())

    def sacct(
        self, *job_ids: str, fields: str = "JobID,State,NodeList", duplicates: bool = False
    ) -> list[dict[str, str]]:
        """One row for each task (also for each earlier life of a requeued one, with duplicates), without job steps."""
        words = ["sacct", "-X", "-n", "-P", "-o", fields, *(["-D"] if duplicates else []), "-j", ",".join(job_ids)]
        return [dict(zip(fields.split(","), line.split("|"), strict=True)) for line in self.run(*words).splitlines()]

    def scancel(self, *words: str) -> None:
        self.run("scancel", *words)

    def kill_slurmd(self, node: str) -> None:
        self.tool("kill-slurmd", node)

    def kill_node(self, node: str, *, unannounced: bool = False) -> None:
        self.tool("kill-node", node, *(["--unannounced"] if unannounced else []))

    def start_slurmd(self, node: str) -> None:
        """Start it and wait until the node can take jobs again."""
        self.tool("start-slurmd", node)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 30, what: str = "the condition") -> float:
        """Seconds that it took."""
        start = time.monotonic()
        while not condition():
            if time.monotonic() - start > timeout_s:
                raise AssertionError(f"{what} not seen within {timeout_s} s; the queue:\n{self.run('squeue', '-r')}")
            time.sleep(0.1)
        return time.monotonic() - start

    def wait_state(self, job_id: str, *states: str, timeout_s: float = 30) -> float:
        """Wait until every task of the job is in one of these states (default: has ended); seconds that it took."""
        wanted = frozenset(states) or FINAL_STATES

        def reached() -> bool:
            found = self.squeue(job_id).values()
            return bool(found) and wanted.issuperset(found)

        return self.wait_until(reached, timeout_s, f"job {job_id} {'/'.join(states) or 'ended'}")

    def cancel_all(self) -> None:
        """Leave an empty queue behind."""
        self.run("scancel", "--state=PENDING", "--user", self.run("id", "-un").strip())
        self.run("scancel", "--user", self.run("id", "-un").strip())
        self.wait_until(lambda: not self.run("squeue", "-h"), 20, "an empty queue")


def is_slurm_variable(name: str) -> bool:
    return (
        name.startswith(("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SQUEUE_", "SACCT_")) and name != "SLURM_SANDBOX_ROOT"
    )


def _run(argv: list[str], environment: dict[str, str], cwd: Path | None = None, text: str = "") -> str:
    done = subprocess.run(argv, env=environment, cwd=cwd, input=text, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise AssertionError(f"{' '.join(argv)} ended with status {done.returncode}: {said}")
    return done.stdout
