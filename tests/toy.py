"""A small git repository with something to tune, and the command line at work in it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Fast enough for tests: the queue is asked often, and nothing waits long.
FAST = ("cluster.queue_poll_s=1", "cluster.poll_s=0.2", "cluster.result_grace_s=2")

SCRIPT = """\
import os, time
LR = 0.1  # the learning rate
SLEEP = {sleep_s}
x = 5.0
with open(os.environ["TRAINED"], "a") as file:  # every training leaves its mark outside of its own directory
    file.write(os.getcwd() + "\\n")
time.sleep(SLEEP)
for _ in range(4):
    x -= LR * 2 * x
print("loss:", x * x)
"""

PLAN = """\
# @package _global_
defaults:
  - override /task: command
  - override /agent: random
plan: {{name: toy, k: {k}, max_rounds: {rounds}, baseline: {baseline}}}
space:
  knobs:
    LR: {{type: float, low: 0.01, high: 0.9}}
task:
  script: fit.py
  editable: [fit.py]
  command: {python} -S fit.py
  train_s: 20
  grace_s: 10
  startup_limit_s: 10
  metric: {{name: loss, regex: 'loss: (\\S+)'}}
"""


class Toy:
    """`root` is the repository. Its plan is +round=toy: a random search over LR, minimizing a loss."""

    def __init__(
        self, root: Path, *, k: int = 2, rounds: int = 1, sleep_s: float = 0.0, baseline: str = "alone", cluster: str
    ) -> None:
        self.root, self.cluster = root, cluster
        self.trained_log = root.parent / f"trained-{root.name}.txt"
        self._started: list[subprocess.Popen[str]] = []
        plan = PLAN.format(k=k, rounds=rounds, baseline=baseline, python=sys.executable)
        self.write("conf/round/toy.yaml", plan)
        self.write("fit.py", SCRIPT.format(sleep_s=sleep_s))
        self.git("init", "--quiet")
        self.commit()

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def git(self, *words: str) -> str:
        who = ["-c", "user.name=T", "-c", "user.email=t@localhost"]
        done = subprocess.run(["git", *who, *words], cwd=self.root, capture_output=True, text=True, check=True)
        return done.stdout

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "start")

    # the command line

    def start(
        self, *words: str, module: str = "autoresearch_hpc", env: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[str]":
        """Start a command of the package in the repository."""
        process = subprocess.Popen(
            [sys.executable, *(["-m", module] if module else []), *words],
            cwd=self.root,
            env={**os.environ, "TRAINED": str(self.trained_log), **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def search(self, tag: str, *words: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
        """Start or resume the search named tag."""
        return self.start(*self.words(tag, *words), env=env)

    def words(self, tag: str, *words: str) -> list[str]:
        return ["+round=toy", f"tag={tag}", f"cluster={self.cluster}", *FAST, *words]

    # what a run left

    def run_dir(self, tag: str) -> Path:
        return self.root / "runs" / tag

    def journal(self, tag: str) -> list[dict[str, Any]]:
        """The complete lines so far."""
        try:
            text = (self.run_dir(tag) / "journal.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def results(self, tag: str) -> list[dict[str, Any]]:
        paths = sorted(self.run_dir(tag).glob("rounds/*/*/trials/*/result.json"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    def trained(self) -> Counter[str]:
        """Candidate -> how often it was trained, over all runs of the repository."""
        if not self.trained_log.exists():
            return Counter()
        return Counter(Path(line).parts[-4] for line in self.trained_log.read_text(encoding="utf-8").splitlines())

    def checkout(self) -> dict[str, Any]:
        """All that is the user's: every file, the index, HEAD, what git says of them."""
        files = {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and path.relative_to(self.root).parts[0] not in (".git", "runs")
        }
        git_dir = self.root / ".git"
        own = {name: (git_dir / name).read_bytes() for name in ("HEAD", "index", "config", "logs/HEAD")}
        head = self.git("rev-parse", "HEAD")
        return {"files": files, **own, "head": head, "status": self.git("--no-optional-locks", "status", "--porcelain")}

    def wait_for(self, tag: str, event: str, count: int = 1, timeout_s: float = 40) -> None:
        """Until the journal has so many of these events."""
        deadline = time.monotonic() + timeout_s
        while sum(line["event"] == event for line in self.journal(tag)) < count:
            assert time.monotonic() < deadline, f"no {event} in {[line['event'] for line in self.journal(tag)]}"
            time.sleep(0.02)

    def stop(self) -> None:
        """End what was started and is still there: controllers, then local trials."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for claim in self.root.glob("runs/*/rounds/*/*/trials/*/claim-*.json"):
            with contextlib.suppress(OSError, ValueError):
                pid = json.loads(claim.read_text())["pid"]
                if b"autoresearch_hpc.trial.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGTERM)


def finish(process: "subprocess.Popen[str]", code: int = 0, timeout_s: float = 120) -> tuple[str, str]:
    """Wait for a command that must end with this exit code; its standard output and error."""
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == code, f"exit code {process.returncode}, not {code}\n{out}\n{err}"
    assert "Traceback" not in err, err
    return out, err
