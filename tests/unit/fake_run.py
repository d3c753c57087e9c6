"""A run directory as a controller and its workers leave it, for the tests of what people see."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from autoresearch_hpc.files import write_json_atomic
from autoresearch_hpc.gains import Comparison, Gain, Noise
from autoresearch_hpc.history import History
from autoresearch_hpc.journal import read
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.records import (
    Candidate,
    Direction,
    Failure,
    Gpu,
    Metric,
    Phases,
    Proposal,
    SlurmJob,
    Status,
    TrialResult,
    candidate_id,
    to_json,
    trial_id,
)

START = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
COMMIT = "f" * 40

CONFIG = """\
plan: {name: cookbook, description: 'Sixteen experiments', k: 4, rounds: [{}, {}, {}], max_rounds: null}
agent: {name: plan}
cluster: {kind: slurm, price_per_gpu_hour: 2.0}
task: {kind: gpt, train_s: 300.0, startup_limit_s: 600.0, grace_s: 60.0, eval_limit_s: 300.0}
budget: {max_trials: 40, gpu_hours: null, usd: 10.0, wall_hours: 2.0}
"""


class FakeRun:
    """Writes a run's journal and files event by event, with a clock of its own."""

    def __init__(
        self,
        root: Path,
        metric: str = "val_bpb",
        direction: Direction = Direction.min,
        deciding_tier: str | None = None,
    ) -> None:
        root.mkdir(parents=True)
        self.layout = RunLayout(root)
        self.layout.config.write_text(CONFIG)
        self.metric, self.direction = metric, direction
        self.now, self._seq, self._rounds = START, 0, 0
        self.incumbent: dict[str, object] | None = None
        self.baseline: float | None = None
        self.event(
            "run.started", tag=root.name, uid="abc123", version="0.1.0", config_sha256="c" * 64, repo="/repo",
            start_commit=COMMIT, metric=metric, direction=str(direction), deciding_tier=deciding_tier,
        )  # fmt: skip

    def event(self, name: str, **data: object) -> None:
        line = {"seq": self._seq, "at": self.now.isoformat(timespec="microseconds"), "event": name, **data}
        with self.layout.journal.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._seq += 1

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def propose(
        self, titles: Sequence[str], submit: bool = True, tiers: Sequence[str] = (), more: bool = False
    ) -> list[str]:
        """The next round, up to its submission, or `more` of the newest. Returns its trial ids.

        `tiers` says on which one each is tried; the submission is an array for each.
        """
        self._rounds += not more
        index = self._rounds - 1
        base = str(self.incumbent["commit"]) if self.incumbent else COMMIT
        begun = len(self.history().rounds[index].entries) if more else 0
        ids = [candidate_id(index, begun + i) for i in range(len(titles))]
        proposals = {
            id_: Proposal(title=title, knobs={"MATRIX_LR": 0.04}, origin="plan")
            for id_, title in zip(ids, titles, strict=True)
        }
        self.event("round.proposed", round=index, base=base, proposals={k: to_json(v) for k, v in proposals.items()})
        candidates = [
            Candidate(id=id_, round=index, proposal=proposal, parent=base, commit=commit_of(id_), diff_lines=2)
            for id_, proposal in proposals.items()
        ]
        places = dict(zip(ids, tiers, strict=True)) if tiers else {}
        made = [to_json(candidate) for candidate in candidates]
        self.event("round.committed", round=index, candidates=made, tiers=places)
        trials = [trial_id(id_, 0) for id_ in ids]
        for id_ in ids:
            self.layout.candidate(id_).mkdir(parents=True)
            self.layout.diff(id_).write_text(
                f"--- a/train.py\n+++ b/train.py\n@@ -1 +1 @@\n-MATRIX_LR = 0.04\n+MATRIX_LR = 0.05  # <{id_}>\n"
            )
        if submit:
            for tier in dict.fromkeys(places.get(id_, "") for id_ in ids):
                name = f"ar-{index}{tier and '-'}{tier}{'-' * begun}"
                mine = [trial_id(id_, 0) for id_ in ids if places.get(id_, "") == tier]
                self.event("submit.intent", round=index, job_name=name, tier=tier, trials=mine)
                jobs = {t: f"4{index}_{begun + i}" for i, t in enumerate(trials) if t in mine}
                self.event("submit.done", round=index, job_name=name, jobs=jobs)
        return trials

    def claim(self, trial: str, phase: str | None = None, ago_s: float = 0.0, attempt: int = 0) -> None:
        """The worker has begun this trial."""
        paths = self.layout.trial(trial)
        paths.root.mkdir(parents=True, exist_ok=True)
        at = (self.now - timedelta(seconds=ago_s)).isoformat()
        write_json_atomic(paths.claim(attempt), {"pid": 1, "host": "node 1", "at": at, "started_monotonic": 1.0})
        if phase:
            write_json_atomic(paths.phases, {"phase": phase, "at": at})

    def result(self, trial: str, value: float | None, status: Status | None = None, **more: Any) -> TrialResult:
        candidate = trial.rpartition("-")[0]
        status = status or (Status.OK if value is not None else Status.CRASHED)
        total_s = more.pop("total_s", 480.0)
        error = (
            None if value is not None else Failure(type="ValueError", message="a <bad> value", tail="line 1\nline 2")
        )
        return TrialResult(
            run=self.layout.root.name,
            round=int(candidate[1:3]),
            candidate=candidate,
            trial=trial,
            attempt=0,
            commit=commit_of(candidate),
            status=status,
            metric=Metric(name=self.metric, value=value, direction=self.direction),
            evaluator="trusted",
            seed=0,
            tier=more.pop("tier", "h100"),
            host="node 1",
            started_at=self.now.isoformat(),
            ended_at=(self.now + timedelta(seconds=total_s)).isoformat(),
            gpu=more.pop("gpu", Gpu(name="H100", uuid="GPU-1", count=1, visible="0")),
            slurm=SlurmJob(job_id="42", array_job_id="41", array_task_id=1, partition="gpu"),
            phases=more.pop(
                "phases",
                Phases(queue_s=5.0, startup_s=40.0, compile_s=60.0, train_s=300.0, eval_s=50.0, total_s=total_s)
                if value is not None
                else Phases(queue_s=5.0, startup_s=40.0, total_s=60.0),
            ),
            peak_vram_mb=more.pop("peak_vram_mb", 45056.0 if value is not None else None),
            error=error,
            **more,
        )

    def done(self, trial: str, value: float | None, status: Status | None = None, **more: Any) -> None:
        """The trial ended and was collected."""
        self.event("trial.done", trial=trial, result=to_json(self.result(trial, value, status, **more)))

    def again(self, stage: str, tier: str = "", **earned: Sequence[float | None]) -> None:
        """A further array of the newest round: more trials of these candidates (r01_c00=[...]), and what they earn."""
        index, place = self._rounds - 1, {"tier": tier, "gpu": gpu_of(tier)} if tier else {}
        earned = {name.replace("_", "-"): values for name, values in earned.items()}
        wanted = {id_: len(v) for id_, v in earned.items()}
        self.event("trials.wanted", round=index, stage=stage, tier=tier, trials=wanted)
        history = self.history()
        for id_, values in earned.items():
            for number, value in enumerate(values, start=len(history.entry(id_).trials)):
                trial = trial_id(id_, number)
                self.event("submit.intent", round=index, job_name=f"ar-{index}-{stage}", tier=tier, trials=[trial])
                self.event("submit.done", round=index, job_name=f"ar-{index}-{stage}", jobs={trial: f"5{number}"})
                self.done(trial, value, **place)

    def judge(
        self,
        verdicts: Mapping[str, str],
        values: Mapping[str, float | None],
        findings: Mapping[str, Comparison] | None = None,
        noise: Noise | None = None,
        pool: Sequence[str] = (),
        over_baseline: Gain | None = None,
    ) -> None:
        index = self._rounds - 1
        if index == 0:
            self.baseline = values.get(candidate_id(0, 0))
        for candidate, verdict in verdicts.items():
            if verdict == "keep":
                self.incumbent = {
                    "candidate": candidate, "commit": commit_of(candidate), "value": values[candidate]
                }  # fmt: skip
        gain = over_baseline or self._over_baseline()
        self.event(
            "round.judged",
            round=index,
            verdicts=dict(verdicts),
            findings={id_: to_json(finding) for id_, finding in (findings or {}).items()},
            noise=to_json(noise) if noise else None,
            pool=list(pool),
            incumbent=self.incumbent,
            over_baseline=to_json(gain) if gain else None,
        )
        self.event("round.closed", round=index)

    def _over_baseline(self) -> Gain | None:
        """What a run without any noise knows."""
        if self.incumbent is None or self.baseline is None or self.incumbent["candidate"] == candidate_id(0, 0):
            return None
        gain = self.baseline - float(str(self.incumbent["value"]))
        return Gain(value=gain if self.direction is Direction.min else -gain)

    def round(self, rows: Sequence[tuple[str, float | None, str]], takes_s: float = 600.0) -> None:
        """A whole round of (title, value, verdict)."""
        trials = self.propose([title for title, _, _ in rows])
        self.wait(takes_s)
        values = {}
        for trial, (_, value, _) in zip(trials, rows, strict=True):
            self.done(trial, value)
            values[trial.rpartition("-")[0]] = value
        ids = [trial.rpartition("-")[0] for trial in trials]
        self.judge({id_: verdict for id_, (_, _, verdict) in zip(ids, rows, strict=True)}, values)

    def history(self) -> History:
        return History.replay(read(self.layout.journal))


def commit_of(candidate: str) -> str:
    """A commit hash made from the id: r03-c02 -> 03020302..."""
    return (candidate[1:3] + candidate[5:7]) * 10


def gpu_of(tier: str) -> Gpu:
    return Gpu(name=tier.upper(), uuid="GPU-1", count=1, visible="0")


def cookbook(root: Path) -> FakeRun:
    """A finished run of a baseline and three rounds of four, one failure and one dropped trial included."""
    run = FakeRun(root)
    run.round([("baseline", 1.010748, "keep")])
    run.round(
        [
            ("EMBEDDING_LR 0.6 -> 0.4", 1.011738, "discard"),
            ("WEIGHT_DECAY 0.2 -> 0.1", 1.011043, "discard"),
            ("WINDOW_PATTERN SSSL -> L", 1.012342, "discard"),
            ("MATRIX_LR 0.04 -> 5", None, "crash"),
        ]
    )
    run.round(
        [
            ("WARMDOWN_RATIO 0.5 -> 0.3", 1.011932, "discard"),
            ("ADAM_BETAS (0.8, 0.95) -> (0.9, 0.95)", 1.011515, "discard"),
            ("MATRIX_LR 0.04 -> 0.05", 1.008112, "keep"),
            ("WARMUP_RATIO 0.0 -> 0.05", 1.010590, "discard"),
        ]
    )
    run.round(
        [
            ("DEPTH 8 -> 6", 1.060995, "discard"),
            ("ASPECT_RATIO 64 -> 56", 1.010452, "discard"),
            ("TOTAL_BATCH_SIZE 2^19 -> 2^18", 0.998559, "keep"),
            ("DEPTH 8 -> 6, TOTAL_BATCH_SIZE 2^18", 1.048885, "discard"),
        ]
    )
    run.event("run.stopped", reason="the plan is complete")
    return run


NOISE = Noise(sd=0.0006, df=6.0, kind="H100, tier h100", measured_df=2.0)
OVER_BASELINE = Gain(value=0.0052, margin=0.00125, expected=0.0047, expected_margin=0.0015)


def told_from_luck(root: Path) -> FakeRun:
    """A finished run by looks: a winner, a near miss, a failure, and a round that kept nothing."""
    run = FakeRun(root)
    run.propose(["baseline"])
    run.wait(600)
    run.done("r00-c00-t0", 1.0005)
    run.again("array", r00_c00=[0.9995, 1.0])
    run.judge({"r00-c00": "keep"}, {"r00-c00": 1.0}, noise=NOISE)
    trials = run.propose(["wider", "deeper", "worse", "broken"])
    run.wait(600)
    for trial, value in zip(trials, (0.9945, 0.9980, 1.0100, None), strict=True):
        run.done(trial, value)
    run.wait(600)
    run.again("look 1", r01_c00=[0.9951], r01_c01=[0.9990], r00_c00=[1.0])
    gain = Gain(value=0.0052, margin=0.0013, expected=0.0049, expected_margin=0.0014)
    near = Gain(value=0.0015, margin=0.0013, expected=0.0009, expected_margin=0.0012)
    worse = Gain(value=-0.0100, margin=0.0017, expected=-0.0098, expected_margin=0.0018)
    findings = {
        "r01-c00": Comparison(call="promote", gain=gain, p=0.00042, k=3, num_trials=2, num_incumbent_trials=4),
        "r01-c01": Comparison(call="near miss", gain=near, p=0.0712, k=3, num_trials=2, num_incumbent_trials=4),
        "r01-c02": Comparison(call="discard", gain=worse, p=1.0, k=3, num_trials=1, num_incumbent_trials=4),
        "r01-c03": Comparison(call="no score"),
    }
    verdicts = {"r01-c00": "keep", "r01-c01": "discard", "r01-c02": "discard", "r01-c03": "crash"}
    run.judge(verdicts, {"r01-c00": 0.9948}, findings, NOISE, ["r01-c01"], OVER_BASELINE)
    [trial] = run.propose(["another"])
    run.done(trial, 0.9990)
    run.again("array", r01_c00=[0.9948])
    last = Gain(value=-0.0042, margin=0.0017, expected=-0.0040, expected_margin=0.0018)
    finding = Comparison(call="discard", gain=last, p=0.99, k=1, num_trials=1, num_incumbent_trials=3)
    run.judge({"r02-c00": "discard"}, {}, {"r02-c00": finding}, NOISE, (), OVER_BASELINE)
    run.event("run.stopped", reason="the plan is complete")
    return run


def on_two_tiers(root: Path) -> FakeRun:
    """A run that screens on h100 and validates on h200: a winner, then a round that is being validated, and one more.

    On h200 everything is worth 0.05 less, so that a mixture of the two shows.
    """
    run = FakeRun(root, deciding_tier="h200")
    run.propose(["baseline"], tiers=["h100"])
    run.wait(600)
    run.done("r00-c00-t0", 1.0005)
    run.again("array on h200", "h200", r00_c00=[0.9505, 0.9500, 0.9495])
    run.again("array", "h100", r00_c00=[0.9995, 1.0])
    run.judge({"r00-c00": "keep"}, {"r00-c00": 0.95}, noise=NOISE)
    trials = run.propose(["wider", "deeper", "worse", "broken"], tiers=["h100"] * 4)
    run.wait(600)
    for trial, value in zip(trials, (0.9945, 0.9960, 1.0100, None), strict=True):
        run.done(trial, value)
    run.again("validation", "h200", r01_c00=[0.9449, 0.9451], r01_c01=[0.9480, 0.9490], r00_c00=[0.9500])
    won, near = Gain(value=0.005, margin=0.0013), Gain(value=0.0015, margin=0.0013)
    findings = {
        "r01-c00": Comparison(call="promote", gain=won, p=0.00042, k=2, num_trials=2, num_incumbent_trials=4),
        "r01-c01": Comparison(call="near miss", gain=near, p=0.0712, k=2, num_trials=2, num_incumbent_trials=4),
        "r01-c02": Comparison(call="screened out", gain=Gain(value=-0.01), k=3, num_trials=1, num_incumbent_trials=3),
        "r01-c03": Comparison(call="no score"),
    }
    verdicts = {"r01-c00": "keep", "r01-c01": "discard", "r01-c02": "discard", "r01-c03": "crash"}
    run.judge(verdicts, {"r01-c00": 0.945}, findings, NOISE, ["r01-c01"], won)
    for trial, value in zip(run.propose(["a", "b"], tiers=["h100"] * 2), (0.9935, 0.9990), strict=True):
        run.done(trial, value)
    run.again("validation", "h200", r02_c00=[0.9440])
    run.propose(["c"], tiers=["h100"])
    return run
