"""A small git repository with something to tune, and the command line at work in it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Fast enough for tests: the queue is asked often, and nothing waits long.
FAST = ("cluster.queue_poll_s=1", "cluster.poll_s=0.2", "cluster.result_grace_s=2")

SCRIPT = """\
import os, random, time
LR = 0.1  # the learning rate
SLEEP = {sleep_s}
x = 5.0
with open(os.environ["TRAINED"], "a") as file:  # every training leaves its mark outside of its own directory
    file.write(os.getcwd() + "\\n")
time.sleep(SLEEP)
for _ in range(4):
    x -= LR * 2 * x
luck = random.Random(int(os.environ["AUTORESEARCH_SEED"])).gauss(0, {noise})
print("loss:", 1 + x * x + luck)
"""

PLAN = """\
# @package _global_
defaults:
  - override /task: command
  - override /agent: random
  - override /decide: {decide}
plan: {{name: toy, k: {k}, rounds: [{{k: {first_k}}}, {{}}], max_rounds: {rounds}, baseline: {baseline}}}
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
    """`root` is the repository. Its plan is +round=toy: a random search over LR, minimizing a loss.

    Each candidate is trained once and the best number kept, unless `decide` says otherwise. `noise` is the standard
    deviation of what a trial's seed adds to its loss, `sleep_s` how long a training takes: seconds, or an expression.
    """

    def __init__(
        self,
        root: Path,
        *,
        cluster: str,
        k: int = 2,
        rounds: int = 1,
        sleep_s: float | str = 0.0,
        baseline: str = "alone",
        first_k: int | None = None,
        decide: str = "best",
        noise: float = 0.0,
        overrides: Sequence[str] = (),
        fast: bool = True,
    ) -> None:
        passed = "task.pass_env=[TRAINED]"
        self.root, self.overrides = root, [f"cluster={cluster}", passed, *(FAST if fast else ()), *overrides]
        self.trained_log = root.parent / f"trained-{root.name}.txt"
        self._started: list[Command] = []
        named = {"k": k, "first_k": first_k or k, "rounds": rounds, "baseline": baseline, "decide": decide}
        plan = PLAN.format(**named, python=sys.executable)
        self.write("conf/round/toy.yaml", plan)
        self.write("fit.py", SCRIPT.format(sleep_s=sleep_s, noise=noise))
        self.git("init", "--quiet")
        self.commit()

    def write(self, name: str, text: str) -> None:
        """A file of the user's checkout."""
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

    def start(self, *words: str, module: str = "autoresearch_hpc", env: Mapping[str, str] | None = None) -> "Command":
        """Start a command of the package in the repository."""
        argv = [sys.executable, *(["-m", module] if module else []), *words]
        environment = {**os.environ, "TRAINED": str(self.trained_log), **(env or {})}
        output = self.root.parent / f"output-{self.root.name}-{len(self._started)}"
        self._started.append(Command(argv, self.root, environment, output))
        return self._started[-1]

    def search(self, tag: str, *words: str, env: Mapping[str, str] | None = None) -> "Command":
        """Start or resume the search named tag."""
        return self.start(*self.words(tag, *words), env=env)

    def words(self, tag: str, *words: str) -> list[str]:
        return ["+round=toy", f"tag={tag}", *self.overrides, *words]

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

    def stop(self) -> None:
        """End what was started and is still there: controllers, then local trials."""
        for command in self._started:
            command.kill()
        for claim in self.root.glob("runs/*/rounds/*/*/trials/*/claim-*.json"):
            with contextlib.suppress(OSError, ValueError):
                pid = json.loads(claim.read_text())["pid"]
                if b"autoresearch_hpc.trial.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGTERM)


class Command:
    """A command at work, its output in files: pipes would stay open as long as the local trials that inherit them."""

    def __init__(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str], output: Path) -> None:
        self._files = [output.with_name(f"{output.name}.{name}") for name in ("out", "err")]
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self.process = subprocess.Popen(argv, cwd=cwd, env=env, stdout=out, stderr=err)
        self.pid = self.process.pid

    def finish(self, code: int = 0, timeout_s: float = 120) -> tuple[str, str]:
        """Wait for an end with this exit code; standard output and error."""
        self.process.wait(timeout_s)
        out, err = self.said()
        assert self.process.returncode == code, f"exit code {self.process.returncode}, not {code}\n{out}\n{err}"
        assert "Traceback" not in err, err
        return out, err

    def said(self) -> tuple[str, str]:
        """Standard output and error so far."""
        out, err = (path.read_text(encoding="utf-8") for path in self._files)
        return out, err

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        self.process.kill()
        self.process.wait()
