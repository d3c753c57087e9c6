"""What the benchmarks on a private Slurm share: the cluster, who calls its commands, a process and its CPU time."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "scancel")
_TOOL = ROOT / "tests" / "sandbox" / "cluster.py"


@contextlib.contextmanager
def sandbox(state: Path, *options: str, keep: Callable[[], bool] = bool) -> Iterator[dict[str, str]]:
    """A Slurm of its own, by default 13 H100s on three nodes and 3 H200s on one; the environment that points to it.

    `options` are those of `up`. `keep` is asked at the end: whether it goes on running for whoever comes next.
    """
    base = [sys.executable, str(_TOOL), "--state", str(state)]
    subprocess.run([*base, "up", *options], check=True, stdout=subprocess.DEVNULL)
    try:
        lines = subprocess.run([*base, "env"], check=True, capture_output=True, text=True).stdout.splitlines()
        words = (shlex.split(line.removeprefix("export "))[0].partition("=") for line in lines if "=" in line)
        own = {name: value.replace("$PATH", os.environ["PATH"]) for name, _, value in words}
        yield {**os.environ, **own}
    finally:
        if not keep():
            subprocess.run([*base, "down"], check=False)


class Calls:
    """Scripts before Slurm's commands on the PATH: each call leaves a line."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._log = folder / "calls"
        self._log.parent.mkdir(parents=True)
        self._log.touch()
        for name in COMMANDS:
            real = shutil.which(name, path=environment["PATH"])
            (folder / name).write_text(f'#!/bin/bash\necho {name} $EPOCHREALTIME >> {self._log}\nexec {real} "$@"\n')
            (folder / name).chmod(0o755)
        self.environment = {**environment, "PATH": f"{folder}:{environment['PATH']}"}

    def counts(self) -> dict[str, int]:
        """Command -> how often it was called so far."""
        return dict(sorted(Counter(name for name, _ in self.times()).items()))

    def times(self) -> list[tuple[str, float]]:
        """Each call's command and moment."""
        lines = (line.split() for line in self._log.read_text().splitlines())
        return [(name, float(moment)) for name, moment in lines]


def repository(root: Path, files: Mapping[str, str]) -> Path:
    """A git repository with these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    who = ["-c", "user.name=Benchmark", "-c", "user.email=benchmark@localhost"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run(["git", *who, *words], cwd=root, check=True)
    return root


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A command that has ended: its exit code and seconds; moments with the CPU seconds that it had used by then.

    CPU seconds are those of children that it has waited for, too.
    """

    code: int
    alive_s: float
    used: list[tuple[float, float]]

    @property
    def cpu_s(self) -> float:
        return self.used[-1][1]

    def share(self, spans: Iterable[tuple[float, float]]) -> float:
        """CPU seconds a second, over spans of begin and end."""
        inside = [[used for used in self.used if begin <= used[0] <= end] for begin, end in spans]
        steps = [(part[-1][0] - part[0][0], part[-1][1] - part[0][1]) for part in inside if part]
        return sum(cpu_s for _, cpu_s in steps) / (sum(seconds for seconds, _ in steps) or 1.0)


def watched(
    argv: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    log: Path,
    end_when: Callable[[], bool] = bool,
    number: signal.Signals = signal.SIGKILL,
) -> Watched:
    """Run a command. As soon as `end_when` says so it gets the signal `number`."""
    began, used = time.monotonic(), [(time.time(), 0.0)]
    with log.open("ab") as file:
        process = subprocess.Popen(argv, cwd=cwd, env=environment, stdout=file, stderr=file)
    while process.poll() is None:
        used.append((time.time(), max(used[-1][1], _cpu_s(process.pid))))
        if end_when():
            process.send_signal(number)
        time.sleep(0.25)
    return Watched(code=process.returncode, alive_s=time.monotonic() - began, used=used)


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
