"""A trial's directory as a controller leaves it, and real workers at work in it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoresearch_hpc.files import read_json, sha256_file, write_json_atomic
from autoresearch_hpc.layout import TrialPaths
from autoresearch_hpc.records import CommandSpec, Direction, Metric, TrialResult, TrialSpec, from_json, to_json

MARK = "AUTORESEARCH_TEST_MARK"  # in the environment of everything that a trial starts


class FakeTrial:
    """One trial of the files given; `spec` may be replaced before a worker is started."""

    def __init__(self, root: Path, files: Mapping[str, str], kind: str = "command", **settings: Any) -> None:
        self.src, self.paths = root / "src 'ü'", TrialPaths(root / "t 0")
        self.paths.root.mkdir(parents=True)
        self.mark = str(root)
        for name, text in files.items():
            path = self.src / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        self.spec = TrialSpec(
            run="tag", round=1, candidate="r01-c00", trial="r01-c00-t0", commit="a" * 40, seed=11, tier="h100",
            kind=kind, src=str(self.src), trial_dir=str(self.paths.root),
            metric=Metric(name="loss", value=None, direction=Direction.min), device="cpu", train_s=20.0,
            startup_limit_s=20.0, grace_s=10.0, eval_limit_s=20.0,
            src_sha256={name: sha256_file(self.src / name) for name in files},
        )  # fmt: skip
        self.spec = replace(self.spec, **settings)

    def command(self, line: str, **settings: Any) -> None:
        given = {"metric_regex": r"^loss: (\S+)$", **settings}
        self.spec = replace(self.spec, command=CommandSpec(command=line, **given))

    @contextmanager
    def worker(
        self, program: Sequence[str] = ("-m", "autoresearch_hpc.trial.worker"), **env: str
    ) -> Iterator["subprocess.Popen[str]"]:
        """A worker under way; `program` may start it in its own way."""
        write_json_atomic(self.paths.spec, to_json(self.spec))
        process = subprocess.Popen(
            [sys.executable, "-P", *program, "--trial", str(self.paths.spec)],
            env={**_clean(), MARK: self.mark, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def run(self, **env: str) -> TrialResult:
        """A worker from its start to its end; nothing of it may be left."""
        with self.worker(**env) as process:
            output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        assert self.left() == []
        return self.result()

    def result(self) -> TrialResult:
        return from_json(TrialResult, read_json(self.paths.result))

    def stop(self, process: "subprocess.Popen[str]", number: signal.Signals) -> float:
        """Send the signal and wait for the worker. Seconds that it took."""
        begun = time.monotonic()
        process.send_signal(number)
        process.wait(20)
        return time.monotonic() - begun

    def left(self) -> list[str]:
        """Command lines of what the trial started and is still alive."""
        found = []
        wanted = f"{MARK}={self.mark}".encode()
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found

    def wait_for(self, path: Path, timeout_s: float = 20.0) -> str:
        """The text of a file that a child writes, once it is there."""
        deadline = time.monotonic() + timeout_s
        while not (path.exists() and path.read_text().endswith("\n")):
            assert time.monotonic() < deadline, f"no {path}"
            time.sleep(0.01)
        return path.read_text()

    def phase(self) -> str:
        return str(json.loads(self.paths.phases.read_text())["phase"])


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "CUDA_VISIBLE"))}
