"""How often each process of a search asks its filesystem for files: what many trials that start at once wait for.

Counts the system calls that look for, open or list files, by whose files these are, of every process of a real run and
of the commands that read one. Needs strace.

    python benchmarks/metadata.py                        # commands, and a run with a baseline of train.py on the CPU
    python benchmarks/metadata.py --storm 16             # 16 workers at once, from .venv and from a copy on the node
    python benchmarks/metadata.py --cold                 # the same without any compiled .pyc
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCAL_ENV = ROOT / "sbatch" / "local_env.sh"
CALLS = "trace=%file,getdents64,clone,clone3,fork,vfork,execve"
_LINE = re.compile(r"^(\d+) +(?:(\w+)\(|<\.\.\. (\w+) resumed>)(.*)$")
_STARTED = re.compile(r"= (\d+)$")
_ROLES = {  # by what its command line holds
    "trial.worker": "worker",
    "trial.evaluate": "evaluate",
    "train.py": "train.py",
    "autoresearch_hpc.status": "status",
    "autoresearch_hpc.report": "report",
    "autoresearch_hpc.plan": "plan",
    "--help": "--help",
    '"autoresearch_hpc"': "controller",
}
PLACES = ("environment", "package", "run", "unpacked", "system")
GPT = (
    "+round=quickstart",
    "plan.max_rounds=0",
    "task.train_s=1",
    "task.overrun_s=60",
    "cluster=local",
    "decide=best",
    "tag=counted",
)
COMMAND = ("+round=counted", "cluster=local", "decide=best", "tag=counted")
PLAN = """\
# @package _global_
defaults: [override /task: command, override /agent: plan]
plan: {name: counted, max_rounds: 0}
task:
  script: fit.py
  editable: [fit.py]
  command: "echo loss: 1"
  train_s: 20
  metric: {name: loss, regex: 'loss: (\\S+)'}
"""


class Counts:
    """Calls by role of the process and by place of the file."""

    def __init__(self, places: Mapping[str, Sequence[Path]]) -> None:
        self._places = [(f"{path}/", name) for name, paths in places.items() for path in paths]
        self._places.sort(key=lambda pair: -len(pair[0]))
        self.by_role: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.processes: Counter[str] = Counter()

    def read(self, log: Path) -> None:
        roles: dict[str, str] = {}
        with log.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if not (matched := _LINE.match(line)):
                    continue
                pid, begun, resumed, rest = matched.groups()
                call = begun or resumed
                if call in ("clone", "clone3", "fork", "vfork"):
                    if child := _STARTED.search(rest):
                        roles.setdefault(child[1], roles.get(pid, "other"))
                    continue
                if not begun:
                    continue
                if call == "execve" and " = -1 " not in rest:
                    role = next((role for part, role in _ROLES.items() if part in rest), None)
                    if roles.get(pid) != role or role is None:
                        self.processes[role or "other"] += 1
                    roles[pid] = role or "other"
                path = re.search(r'"((?:[^"\\]|\\.)*)"', rest)
                where = path[1] if path and path[1].startswith("/") else ""
                self._count(roles.get(pid, "other"), call, where, " = -1 " in rest)

    def _count(self, role: str, call: str, path: str, failed: bool) -> None:
        counts = self.by_role[role]
        if call == "getdents64" or not path:  # of an open file: its descriptor says not whose
            counts["on open files"] += 1
            return
        place = next((name for prefix, name in self._places if f"{path}/".startswith(prefix)), "system")
        counts[place] += 1
        counts["of these in vain"] += failed


def table(counts: Counts) -> Iterator[str]:
    head = ["process", "times", *PLACES, "of these in vain", "on open files"]
    yield f"{head[0]:<14}" + "".join(f"{name:>18}" for name in head[1:])
    for role, found in counts.by_role.items():
        times = counts.processes[role]
        cells = [times, *(found[name] for name in head[2:])]
        yield f"{role:<14}" + "".join(f"{cell:>18,}" for cell in cells)


def places(work: Path, unpacked: Path) -> dict[str, list[Path]]:
    base = [Path(sys.prefix), Path(sys.base_prefix)]
    return {
        "environment": [*base, *(path.resolve() for path in base)],
        "package": [ROOT / name for name in ("autoresearch_hpc", "conf", "sbatch")] + [ROOT],
        "unpacked": [unpacked],
        "run": [work],
    }


def traced(words: Sequence[str], log: Path, cwd: Path, environment: Mapping[str, str]) -> float:
    """Seconds that it took under strace."""
    begun = time.monotonic()
    command = ["strace", "-f", "-qq", "-s", "400", "-e", CALLS, "-e", "signal=none", "-o", str(log), *words]
    done = subprocess.run(command, cwd=cwd, env=dict(environment), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"{shlex.join(words)}: {done.stderr.decode()[-2000:]}")
    return time.monotonic() - begun


def repository(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "autoresearch_hpc.init", str(folder)], check=True, stdout=subprocess.DEVNULL)
    (folder / "fit.py").write_text("print('loss: 1')\n")
    (folder / "conf/round/counted.yaml").write_text(PLAN)
    who = ["-c", "user.name=T", "-c", "user.email=t@localhost"]
    for words in (["add", "."], [*who, "commit", "-qm", "fit"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def storm(
    number: int, run: Path, scratch: Path, unpacked: Path, environment: Mapping[str, str], archive: Path | None
) -> None:
    """So many workers of the run's baseline at once, each a job as Slurm would start it."""
    (spec,) = run.glob("rounds/00/r00-c00/trials/t0/trial.json")
    jobs, begun = [], time.monotonic()
    for i in range(number):
        folder = scratch / f"trial-{i}"
        folder.mkdir()
        told = json.loads(spec.read_text()) | {"trial_dir": str(folder), "inbox": None}
        (folder / "trial.json").write_text(json.dumps(told))
        setup = f"source {shlex.quote(str(LOCAL_ENV))} use {shlex.quote(str(archive))}; " if archive else ""
        python = '"$AUTORESEARCH_ENV/bin/python"' if archive else shlex.quote(sys.executable)
        line = (
            f"{setup}{python} -P -u -m autoresearch_hpc.trial.worker --trial {shlex.quote(str(folder / 'trial.json'))}"
        )
        words = ["strace", "-f", "-qq", "-s", "400", "-e", CALLS, "-e", "signal=none", "-o", str(folder / "strace.log")]
        own = {**environment, "AUTORESEARCH_LOCAL": str(unpacked)}
        jobs.append(subprocess.Popen([*words, "bash", "-c", line], env=own, stderr=subprocess.PIPE))
    for job in jobs:
        job.communicate()
    seconds = time.monotonic() - begun
    counts = Counts(places(scratch, unpacked))
    statuses: Counter[str] = Counter()
    for i in range(number):
        counts.read(scratch / f"trial-{i}" / "strace.log")
        statuses[json.loads((scratch / f"trial-{i}" / "result.json").read_text())["status"]] += 1
        shutil.rmtree(scratch / f"trial-{i}")
    told = f"{number} workers at once, {'unpacked by the first' if archive else 'from the environment'}"
    print(f"\n{told}: {seconds:.0f} s, {dict(statuses)}")
    print("\n".join(table(counts)))
    shared = sum(found[name] for found in counts.by_role.values() for name in ("environment", "package", "run"))
    print(f"on the shared filesystem: {shared:,}")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Counts of questions for files.")
    parser.add_argument("--task", choices=("gpt", "command", "both"), default="both")
    parser.add_argument("--storm", type=int, default=0, metavar="N", help="N workers at once, with and without a copy")
    parser.add_argument("--cold", action="store_true", help="as if nothing was compiled to .pyc yet")
    options = parser.parse_args(words)
    if not shutil.which("strace"):
        sys.exit("no strace here: apt-get install strace")
    with tempfile.TemporaryDirectory(prefix="shared-") as folder, tempfile.TemporaryDirectory(prefix="node-") as own:
        scratch, node = Path(folder).resolve(), Path(own).resolve()
        work, log = repository(scratch / "repository"), scratch / "strace.log"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if options.cold:
            environment |= {"PYTHONPYCACHEPREFIX": str(scratch / "pyc"), "PYTHONDONTWRITEBYTECODE": "1"}
        if options.task != "command":  # the quickstart's data, beforehand
            corpus = ("vocab_size=1024", "seq_len=128", "tokenizer_mb=4", "max_train_mb=16", "val_mb=1")
            prepare = [sys.executable, "-m", "autoresearch_hpc.prepare", *(f"corpus.{each}" for each in corpus)]
            subprocess.run(prepare, cwd=work, env=environment, check=True, capture_output=True)
        archive = scratch / "env.tar"
        for task, overrides in (("command", COMMAND), ("gpt", GPT)):
            if options.task not in (task, "both"):
                continue
            counts = Counts(places(work, node))
            module = [sys.executable, "-m", "autoresearch_hpc"]
            traced([*module, *overrides], log, work, environment)
            counts.read(log)
            runs = [
                [*module, "--help"],
                *([sys.executable, "-m", f"autoresearch_hpc.{name}", *more] for name, *more in _READERS),
            ]
            for line in runs if task == "command" else ():
                traced(line, log, work, environment)
                counts.read(log)
            print(f"\ntask={task}{', nothing compiled' if options.cold else ''}")
            print("\n".join(table(counts)))
            if options.storm:
                run = work / "runs" / "counted"
                storm(options.storm, run, scratch, node, environment, None)
                if not archive.exists():
                    subprocess.run(["bash", str(LOCAL_ENV), "pack", sys.prefix, str(archive)], check=True)
                storm(options.storm, run, scratch, node, environment, archive)
            shutil.rmtree(work / "runs")
            subprocess.run(["git", "branch", "-qD", "autoresearch/counted"], cwd=work, check=True)
    return 0


_READERS = (("status", "counted"), ("plan", "+round=quickstart"), ("report", "counted"))

if __name__ == "__main__":
    sys.exit(main())
