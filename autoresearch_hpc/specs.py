"""What a trial is told: trial.json, all that its worker needs, written before the submission."""

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from autoresearch_hpc.config import KnobsBy, TaskConfig, TaskKind
from autoresearch_hpc.files import sha256_file, write_json_atomic
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.records import Candidate, CommandSpec, Direction, KnobValue, Metric, TrialSpec, to_json
from autoresearch_hpc.trial.integrity import harness_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecWriter:
    """Writes the specs of a run's trials. `data_dir` and `data_sha256` are None where the script brings its own."""

    tag: str
    seed: int
    task: TaskConfig
    layout: RunLayout
    num_threads: int | None
    data_dir: Path | None
    data_sha256: str | None

    def write(self, candidate: Candidate, trial: str, tier: str) -> TrialSpec:
        """Make the trial's directory and its trial.json."""
        paths, src = self.layout.trial(trial), self.layout.src(candidate.id)
        paths.root.mkdir(parents=True, exist_ok=True)
        spec = TrialSpec(
            run=self.tag,
            round=candidate.round,
            candidate=candidate.id,
            trial=trial,
            commit=candidate.commit,
            parent=candidate.parent,
            seed=trial_seed(self.seed, trial),
            tier=tier,
            kind=self.task.kind.value,
            src=str(src),
            trial_dir=str(paths.root),
            metric=metric(self.task),
            device=self.task.device.value,
            train_s=self.task.train_s,
            startup_limit_s=self.task.startup_limit_s,
            overrun_s=self.task.overrun_s,
            grace_s=self.task.grace_s,
            eval_limit_s=self.task.eval_limit_s,
            eval_tokens=self.task.eval_tokens,
            eval_batch_rows=self.task.eval_batch_rows,
            script=self.task.script,
            data_dir=str(self.data_dir) if self.data_dir else None,
            data_sha256=self.data_sha256,
            harness_sha256=harness_sha256(),
            src_sha256={name: sha256_file(src / name) for name in self.task.editable_paths if (src / name).is_file()},
            num_threads=self.num_threads,
            submitted_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            inbox=str(self.layout.inbox),
            command=_command(self.task, candidate),
            pass_env=tuple(self.task.pass_env),
            sandbox=self.task.sandbox.value,
            stage=self.task.stage,
            stage_limit_s=self.task.stage_limit_s,
        )
        write_json_atomic(paths.spec, to_json(spec))
        return spec


def metric(task: TaskConfig) -> Metric:
    """The metric that decides, without a value. A gpt task's is always val_bpb."""
    if task.kind is TaskKind.gpt:
        return Metric(name="val_bpb", value=None, direction=Direction.min)
    return Metric(name=task.metric.name, value=None, direction=task.metric.direction)


def trial_seed(seed: int, trial: str) -> int:
    """A trial's seed, below 2**31: a hash of the run's seed and the trial's id."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{trial}".encode()).digest()[:4], "big") % 2**31


def _command(task: TaskConfig, candidate: Candidate) -> CommandSpec | None:
    if task.kind is TaskKind.gpt:
        return None
    assert task.command
    command, env = task.command, dict(task.env)
    if task.knobs_by is KnobsBy.template:
        command = fill(command, candidate.knobs)
    if task.knobs_by is KnobsBy.env:
        env |= {name: plain(value) for name, value in candidate.knobs.items()}
    return CommandSpec(
        command=command,
        env=env,
        metric_json=task.metric.json,
        metric_key=task.metric.key or task.metric.name,
        metric_regex=task.metric.regex,
    )


def fill(template: str, knobs: Mapping[str, KnobValue]) -> str:
    """The command with each {KNOB} replaced by one shell word; other braces stay as they are."""

    def word(match: re.Match[str]) -> str:
        return shlex.quote(plain(knobs[match[1]])) if match[1] in knobs else match[0]

    return re.sub(r"\{(\w+)\}", word, template)


def plain(value: KnobValue) -> str:
    """A knob's value as text: tuples with commas."""
    return ",".join(map(plain, value)) if isinstance(value, tuple) else str(value)
