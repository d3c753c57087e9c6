"""What a run of 10,000 trials costs its controller, and those who look at it.

A run is made by the package's own controller: everything is real but git and the cluster, whose trials end at once with
a result like one of train.py's. Then the same journal, cut off after so many trials, is opened again, and every step of
a controller is timed on it, each part in a process of its own.

    python benchmarks/journal.py                      # makes both runs (some minutes), then measures
    python benchmarks/journal.py --keep FOLDER        # keeps them there; finds them there the next time
    python benchmarks/journal.py --trials 1000        # smaller
    python benchmarks/journal.py --tiers              # the second run alone: two kinds of GPU, rounds that overlap
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from autoresearch_hpc import journal
from autoresearch_hpc.agents import Brief, PlannedAgent
from autoresearch_hpc.agents.sampling import Sampler, Setting
from autoresearch_hpc.budget import Budget
from autoresearch_hpc.cluster import JobState, Submission
from autoresearch_hpc.combine import Combiner
from autoresearch_hpc.config import (
    AgentConfig,
    BudgetConfig,
    ClusterConfig,
    Config,
    DecideConfig,
    KnobDomain,
    KnobsBy,
    KnobType,
    MetricConfig,
    PlanConfig,
    SpaceConfig,
    TaskConfig,
    TaskKind,
    TierConfig,
    ValidateConfig,
)
from autoresearch_hpc.controller import Controller
from autoresearch_hpc.effects import FitProcess
from autoresearch_hpc.fanout import Fanout
from autoresearch_hpc.files import read_json
from autoresearch_hpc.history import History
from autoresearch_hpc.journal import Event, Journal, read
from autoresearch_hpc.layout import RunLayout, TrialPaths
from autoresearch_hpc.ledger import Ledger
from autoresearch_hpc.live import LiveView, PlainView, View, screen
from autoresearch_hpc.progress import Watch
from autoresearch_hpc.records import (
    Candidate,
    Failure,
    Gpu,
    Knobs,
    Phases,
    Proposal,
    SearchState,
    SlurmJob,
    Status,
    TrialResult,
    TrialSpec,
    from_json,
    to_json,
)
from autoresearch_hpc.report.settings import settings_of
from autoresearch_hpc.space import from_config
from autoresearch_hpc.specs import SpecWriter
from autoresearch_hpc.stopping import StopRequest
from autoresearch_hpc.submit import Submitter
from autoresearch_hpc.tiers import Tiers

K = 16
AT = (100, 1_000, 5_000, 10_000)  # trials after which the steps are timed
NOISE_SD = 0.0006
AGENTS = ("random", "gp", "tpe", "cmaes", "factorial")
BASE: Knobs = {
    "DEPTH": 8,
    "ASPECT_RATIO": 64,
    "WINDOW_PATTERN": "SSSL",
    "TOTAL_BATCH_SIZE": 2**19,
    "EMBEDDING_LR": 0.6,
    "MATRIX_LR": 0.04,
    "WEIGHT_DECAY": 0.2,
    "WARMUP_RATIO": 0.0,
    "WARMDOWN_RATIO": 0.5,
}
KNOBS = {
    "DEPTH": KnobDomain(type=KnobType.int, low=6, high=12),
    "ASPECT_RATIO": KnobDomain(type=KnobType.int, low=48, high=96),
    "WINDOW_PATTERN": KnobDomain(choices=["SSSL", "SSL", "SL", "L"]),
    "TOTAL_BATCH_SIZE": KnobDomain(type=KnobType.pow2, low=2**18, high=2**20),
    "EMBEDDING_LR": KnobDomain(type=KnobType.float, low=0.2, high=1.2, log=True),
    "MATRIX_LR": KnobDomain(type=KnobType.float, low=0.02, high=0.08, log=True),
    "WEIGHT_DECAY": KnobDomain(type=KnobType.float, low=0.0, high=0.4),
    "WARMUP_RATIO": KnobDomain(type=KnobType.float, low=0.0, high=0.1),
    "WARMDOWN_RATIO": KnobDomain(type=KnobType.float, low=0.2, high=0.8),
}


def config(tiers: bool, trials: int) -> Config:
    """600 rounds of 16, looks and all; or the like on two kinds of GPU, rounds overlapping."""
    cluster = ClusterConfig(max_parallel=K, price_per_gpu_hour=2.0, poll_s=0.05)
    validate = ValidateConfig()
    if tiers:
        kinds = {
            "h100": TierConfig(max_parallel=K, price_per_gpu_hour=2.0),
            "h200": TierConfig(max_parallel=4, price_per_gpu_hour=3.0),
        }
        cluster = dataclasses.replace(cluster, tiers=kinds, backlog=K // 2, max_parallel=None)
        validate = ValidateConfig(top=1, seeds=3)
    task = TaskConfig(
        kind=TaskKind.command,
        command="python fit.py",
        script="fit.py",
        knobs_by=KnobsBy.env,
        metric=MetricConfig(name="val_bpb", regex=r"loss: (\S+)"),
    )
    return Config(
        plan=PlanConfig(name="large", k=K, max_rounds=trials, base=dict(BASE), validate=validate),
        space=SpaceConfig(knobs=KNOBS),
        agent=AgentConfig(name="random"),
        cluster=cluster,
        task=task,
        budget=BudgetConfig(max_trials=trials, gpu_hours=2.0 * trials, usd=9.0 * trials, wall_hours=1e6),
        decide=DecideConfig(noise_sd=NOISE_SD),
        schedule="async" if tiers else "rounds",
        tag="large",
    )


# what is not real


def score(knobs: Mapping[str, Any], luck: random.Random) -> float:
    """A surface with an optimum away from the start, and luck."""
    steps = [
        math.log2(knobs["MATRIX_LR"] / 0.055),
        math.log2(knobs["EMBEDDING_LR"] / 0.4),
        (knobs["DEPTH"] - 9) / 3,
        (knobs["ASPECT_RATIO"] - 72) / 24,
        (knobs["WEIGHT_DECAY"] - 0.1) / 0.2,
        (knobs["WARMDOWN_RATIO"] - 0.65) / 0.3,
        math.log2(knobs["TOTAL_BATCH_SIZE"] / 2**18),
    ]
    bend = 0.004 * steps[0] * steps[6] + 0.003 * (knobs["WINDOW_PATTERN"] == "L")
    return 0.97 + bend + sum(0.006 * step**2 for step in steps) + luck.gauss(0, NOISE_SD)


class Tinkerer(Sampler):
    """Changes one to three knobs of the incumbent by a little, as people and language models do."""

    origin = "tinkerer"

    def _settings(self, state: SearchState, k: int, taken: set[object]) -> Iterable[Setting]:
        rng = self._rng(state)
        for _ in range(50 * k):
            setting = {name: state.incumbent_knobs[name] for name in self._space.names}
            for name in rng.sample(self._space.names, rng.randint(1, 3)):
                domain = self._space.domains[name]
                setting[name] = domain.at(domain.position(setting[name]) + rng.gauss(0, 0.15))
            yield setting
        yield from self._random_settings(state, k)


class InstantCluster:
    """Trials end at once. It is durable, has job ids and accounting, as Slurm does."""

    name, durable, accounts, num_threads = "local", True, True, None
    max_array = 1000

    def __init__(self) -> None:
        self._ids = itertools.count(1000)
        self._gpu_s: dict[str, float] = {}

    def check(self, wall_limit_s: float, folder: Path) -> None: ...

    def job_limit_s(self, wall_limit_s: float) -> float:
        return wall_limit_s

    def launch(self, submission: Submission) -> Mapping[str, str]:
        array = next(self._ids)
        jobs = {trial: f"{array}_{index}" for index, trial in enumerate(submission.trials)}
        for trial, path in submission.trials.items():
            result = _result(from_json(TrialSpec, read_json(path)), jobs[trial])
            TrialPaths(path.parent).result.write_text(json.dumps(to_json(result)))
            self._gpu_s[trial] = (result.phases.total_s or 0.0) + 2.5
        return jobs

    def adopt(self, submission: Submission) -> Mapping[str, str] | None:
        return {}

    def poll(self, jobs: Mapping[str, str]) -> Mapping[str, JobState]:
        return {trial: JobState("COMPLETED", ended=True) for trial in jobs}

    def cancel(self, jobs: Mapping[str, str]) -> None: ...

    def charges(self, jobs: Mapping[str, str]) -> Mapping[str, float]:
        return {trial: self._gpu_s.get(trial, 400.0) for trial in jobs}


def opened(layout: RunLayout) -> tuple[Journal, Ledger]:
    """As `search` opens a run."""
    history = History()
    if not hasattr(journal, "stream"):
        book = Journal(layout.journal)
        return book, Ledger(book)
    book = Journal(layout.journal, history.apply)
    return book, Ledger(book, history=history)


def _result(spec: TrialSpec, job: str) -> TrialResult:
    """As one of train.py's on an H100; some fail."""
    assert spec.command
    luck = random.Random(f"{spec.trial}/{spec.seed}")
    knobs = {name: text if text.isalpha() else float(text) for name, text in spec.command.env.items()}
    fate = luck.random()
    status = Status.OOM if fate < 0.02 else Status.LOST if fate < 0.022 else Status.OK
    value = score(knobs, luck) - 0.001 * (spec.tier == "h200") if status is Status.OK else None
    begun = datetime(2026, 1, 31, tzinfo=UTC) + timedelta(seconds=60 * spec.round)
    error = None
    if status is not Status.OK:
        words = "CUDA out of memory. Tried to allocate 1.56 GiB. GPU 0 has a total capacity of 79.11 GiB"
        error = Failure(type="OutOfMemoryError", message=words, tail="\n".join([words] * 12))
    kind = "NVIDIA H200" if spec.tier == "h200" else "NVIDIA H100 80GB HBM3"
    return TrialResult(
        **{name: getattr(spec, name) for name in ("run", "round", "candidate", "trial", "commit", "seed", "tier")},
        attempt=0,
        status=status,
        metric=dataclasses.replace(spec.metric, value=value),
        evaluator="trusted",
        host=f"node{luck.randrange(40):03d}",
        started_at=begun.isoformat(timespec="milliseconds"),
        ended_at=(begun + timedelta(seconds=400)).isoformat(timespec="milliseconds"),
        gpu=Gpu(name=kind, uuid=f"GPU-{luck.getrandbits(128):032x}", count=1, visible="0", memory_mb=81559.0),
        slurm=SlurmJob(
            job_id=job,
            array_job_id=job.partition("_")[0],
            array_task_id=int(job.partition("_")[2]),
            partition="gpu",
            gres="0",
            nodelist=f"node{luck.randrange(40):03d}",
        ),
        phases=Phases(
            queue_s=round(luck.uniform(1, 60), 3),
            startup_s=round(luck.uniform(9, 14), 3),
            compile_s=round(luck.uniform(20, 40), 3),
            train_s=round(luck.uniform(300, 301), 3),
            eval_s=round(luck.uniform(15, 20), 3),
            total_s=round(luck.uniform(360, 400), 3),
        ),
        peak_vram_mb=round(luck.uniform(30000, 60000), 1),
        steps=luck.randrange(900, 1000),
        tokens=luck.randrange(10**8, 5 * 10**8),
        mfu=luck.uniform(35, 42),
        num_params=50_332_176,
        torch="2.11.0+cu130",
        error=error,
        data_sha256="d" * 64,
        harness_sha256="e" * 64,
    )


class Committer:
    """Candidates without git: a commit is a hash, a diff says what changed."""

    rewrites = False

    def __init__(self, layout: RunLayout) -> None:
        self._layout = layout

    def make(self, id_: str, round_: int, proposal: Proposal, parent: str, parent_knobs: Knobs) -> Candidate:
        folder = self._layout.candidate(id_)
        folder.mkdir(parents=True, exist_ok=True)
        changed = {name: value for name, value in proposal.knobs.items() if parent_knobs.get(name) != value}
        lines = [f"-{name} = {parent_knobs.get(name)!r}\n+{name} = {value!r}" for name, value in changed.items()]
        patch = "\n".join(["--- a/fit.py", "+++ b/fit.py", "@@ -1,12 +1,12 @@", *lines, ""])
        self._layout.diff(id_).write_text(patch)
        settings = {**parent_knobs, **proposal.knobs}
        return Candidate(
            id=id_,
            round=round_,
            proposal=proposal,
            parent=parent,
            commit=hashlib.sha1(id_.encode()).hexdigest(),
            knobs=settings,
            diff_lines=2 * len(lines),
            fingerprint=hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest(),
        )

    def sources(self, commit: str) -> dict[str, str]:
        return {"fit.py": "print('loss: 1')\n"}

    texts = sources

    def edit(self, proposal: Proposal, start: str) -> dict[str, str | None]:
        return {}

    def script_knobs(self, commit: str) -> Knobs:
        return {}


class Branch:
    """The repository: nothing moves."""

    def advance(self, tag: str, commit: str) -> None: ...

    def working_text(self, path: str) -> str:
        return "Make val_bpb smaller.\n"


class Fits(FitProcess):
    """Remembers how large it was."""

    peak_mb = 0.0

    def close(self) -> None:
        if self._process:
            self.peak_mb = peak_mb(self._process.pid)
        super().close()


class Seat:
    """A controller of the run, put together as `search` does."""

    def __init__(
        self, layout: RunLayout, settings: Config, proposer: str = "tinkerer", view: View | None = None
    ) -> None:
        self.layout, self.config = layout, settings
        layout.inbox.mkdir(parents=True, exist_ok=True)
        self._journal, self.ledger = opened(layout)
        if self.ledger.history.started_at is None:
            self._start()
        space = from_config(settings.space)
        assert space
        self.space, maker, stop = space, Committer(layout), StopRequest("")
        task = settings.task
        self.budget = Budget(config=settings.budget, tiers=Tiers.of(settings), job_limit_s=task.wall_limit_s)
        specs = SpecWriter(
            tag="large", seed=0, task=task, layout=layout, num_threads=None, data_dir=None, data_sha256=None
        )
        shared: dict[str, Any] = {"layout": layout, "ledger": self.ledger, "budget": self.budget, "stop": stop}
        place = InstantCluster()
        submitter = Submitter(settings, cluster=place, specs=specs, **shared)
        fanout = Fanout(settings, cluster=place, submitter=submitter, view=view or PlainView(), **shared)
        self.fit = Fits()
        self.brief = Brief(config=settings.agent, plan=settings.plan, space=space, fit=self.fit)
        self.controller = Controller(
            settings,
            layout=layout,
            ledger=self.ledger,
            repo=Branch(),  # type: ignore[arg-type]
            agent=self.agent(proposer),
            maker=maker,  # type: ignore[arg-type]
            combiner=Combiner(self.brief, maker, lambda base, ours, theirs: ours),  # type: ignore[arg-type]
            fanout=fanout,
            budget=self.budget,
            fit=self.fit,
            stop=stop,
        )

    def agent(self, name: str) -> PlannedAgent:
        from autoresearch_hpc.agents import _SAMPLERS

        sampler = {**_SAMPLERS, "tinkerer": Tinkerer}[name]
        options = {"fit": self.fit} if name == "factorial" else {}
        return PlannedAgent(self.config.plan, sampler(self.space, 0, {}, **options))

    def _start(self) -> None:
        tiers = Tiers.of(self.config)
        start = {"tag": "large", "uid": "abcd1234", "version": "0", "config_sha256": "c" * 64, "repo": "/repo"}
        start |= {"start_commit": "f" * 40, "metric": "val_bpb", "direction": "min"}
        self.ledger.record("run.started", **start, deciding_tier=tiers.validates)

    def close(self) -> None:
        self.fit.close()
        self._journal.close()


# making it


def make(folder: Path, tiers: bool, trials: int) -> None:
    """A run's directory, and in `pace.json` the seconds that each hundred trials took."""
    from autoresearch_hpc import rundir

    partial = RunLayout(folder.with_name(f"{folder.name}.partial") / "large")
    shutil.rmtree(partial.root.parent, ignore_errors=True)
    partial.root.mkdir(parents=True)
    settings = config(tiers, trials)
    partial.config.write_text(rundir.as_yaml(settings))
    seat = Seat(partial, settings)
    begun, last, pace, seen = time.perf_counter(), time.perf_counter(), [], 0
    record = seat.ledger.record

    def watched(event: str, **data: object) -> None:
        nonlocal last, seen
        record(event, **data)
        seen += event == "trial.done"
        if event == "trial.done" and seen % 500 == 0:
            pace.append((seen, time.perf_counter() - last))
            print(f"  {seen} trials after {time.perf_counter() - begun:.0f} s", file=sys.stderr)
            last = time.perf_counter()

    for part in (seat.ledger, seat.controller, seat.controller._fanout):
        setattr(part, "record" if part is seat.ledger else "_record", watched)
    seat.controller.run()
    seat.close()
    partial.root.with_name("pace.json").write_text(json.dumps(pace))
    partial.root.parent.rename(folder)


def cut(layout: RunLayout, to: Path, trials: int) -> RunLayout | None:
    """The run as it was just before the judgement of the round with its so-many-th trial; None where it had fewer."""
    lines = layout.journal.read_bytes().splitlines(keepends=True)
    judged = [number for number, line in enumerate(lines) if b'"event": "round.judged"' in line]
    done = list(itertools.accumulate(b'"event": "trial.done"' in line for line in lines))
    if done[-1] < trials:
        return None
    number = next((number for number in judged if done[number] >= trials), judged[-1])
    root = to / f"large-{trials}"
    root.mkdir(parents=True, exist_ok=True)
    (root / "journal.jsonl").write_bytes(b"".join(lines[:number]))
    shutil.copy(layout.config, root / "config.yaml")
    return RunLayout(root)


# measuring: each of these runs in a process of its own


def peak_mb(process: int | str = "self") -> float:
    """Of one process alone: what rusage tells begins with its parent's."""
    words = Path(f"/proc/{process}/status").read_text(encoding="ascii").split()
    return int(words[words.index("VmHWM:") + 1]) / 1024


def timed(act: Callable[[], object], least_s: float = 0.3, most: int = 200) -> float:
    """Median milliseconds of one call."""
    seconds: list[float] = []
    while sum(seconds) < least_s and len(seconds) < most:
        begun = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - begun)
    return 1000 * statistics.median(seconds)


def replay(root: Path) -> dict[str, float]:
    """Opening the journal as a resuming controller does."""
    before, begun = peak_mb(), time.perf_counter()
    _, ledger = opened(RunLayout(root))
    history, seconds = ledger.history, time.perf_counter() - begun
    return {"s": seconds, "MB before": before, "MB peak": peak_mb(), "trials": sum(1 for _ in history.trials())}


def resume(root: Path, tiers: bool, trials: int) -> dict[str, float]:
    """A controller with all that it imports, resumed for three more rounds; its peak memory."""
    import autoresearch_hpc.__main__
    import autoresearch_hpc.search  # noqa: F401
    from autoresearch_hpc import cluster, report

    cluster.build(ClusterConfig())
    settings = config(tiers, trials + 48)
    settings.agent.name = "gp"
    begun = time.perf_counter()
    seat = Seat(RunLayout(root), settings, "gp")
    ready_s = time.perf_counter() - begun
    idle = peak_mb()
    seat.controller.run()
    found = {"ready s": ready_s, "run s": time.perf_counter() - begun - ready_s, "MB idle": idle, "MB run": peak_mb()}
    found["MB of its fits"] = seat.fit.peak_mb
    seat.close()
    history = seat.ledger.history
    del seat  # as at the end of `search.run`
    report.write_all(history, RunLayout(root))
    return {**found, "MB with report": peak_mb()}


def write_report(root: Path) -> dict[str, float]:
    from autoresearch_hpc import report

    history = History()
    for event in getattr(journal, "stream", read)(RunLayout(root).journal):
        history.apply(event)
    begun = time.perf_counter()
    report.write_all(history, RunLayout(root))
    return {"s": time.perf_counter() - begun, "MB peak": peak_mb()}


def events(root: Path) -> dict[str, float]:
    """Microseconds to apply one trial's result, and to append one to the journal, at the begin and at the end."""
    path = RunLayout(root).journal
    past, history = list(read(path)), History()
    done: list[float] = []
    for event in past:
        begun = time.perf_counter()
        history.apply(event)
        if event.event == "trial.done":
            done.append(1e6 * (time.perf_counter() - begun))
    tenth = max(1, len(done) // 10)
    data = dict(next(event.data for event in reversed(past) if event.event == "trial.done"))
    with Journal(path) as book:
        written = timed(lambda: book.append("trial.done", **data))
    first, last = statistics.median(done[:tenth]), statistics.median(done[-tenth:])
    return {"apply first tenth us": first, "apply last tenth us": last, "append us": 1000 * written}


def steps(root: Path, tiers: bool, trials: int) -> dict[str, float]:
    """Milliseconds of every step, just before a judgement."""
    from autoresearch_hpc import collect, decide, effects, report

    settings = config(tiers, 10 * trials)
    seat = Seat(RunLayout(root), settings)
    history, controller, space = seat.ledger.history, seat.controller, seat.space
    round_ = next(r for r in reversed(history.rounds) if r.complete and not r.judged)
    place, console = Tiers.of(settings), LiveView(seat.layout, settings_of(settings))
    watch, index = Watch(seat.layout), len(history.rounds)
    trial = next(t for t in reversed(list(history.trials())) if t.result)
    done = {"trial": trial.id, "result": to_json(trial.result)}

    def fresh(act: Callable[[], object]) -> Callable[[], object]:
        """After a result came: nothing that was remembered of it holds."""

        def both() -> object:
            history.apply(Event(seq=0, at=history.last_at or "", event="trial.done", data=done))
            return act()

        return both

    write_tables = report.Tables().write if hasattr(report, "Tables") else report.write_tables
    poll = {
        "budget.room": lambda: seat.budget.room(history),
        "outstanding, find, faulty nodes": lambda: (
            history.outstanding,
            history.find(decide.standing(history)),
            collect.faulty_nodes(history, 2),
            controller._schedule.may_go_on(),
        ),
        "live table": lambda: console._console.render_lines(
            screen(history, settings_of(settings), watch, {}, max_rows=20)
        ),
    }
    found = {f"poll: {name}": timed(fresh(act)) for name, act in poll.items()}
    proposer = getattr(controller, "_proposer", controller)  # of earlier versions
    per_round: dict[str, Callable[[], object]] = {
        "history.outcomes": lambda: history.outcomes(unjudged=tiers),
        "state for the agent": lambda: proposer._state(index),
        "combine": lambda: proposer._combiner.propose(history, index, K),
        "decide.further": lambda: decide.further(history, round_, settings.decide, place),
        "decide.judge": lambda: decide.judge(history, round_, settings.decide, place),
        "write the tables": lambda: write_tables(history, seat.layout),
        "effects": lambda: effects.worth_telling(history.outcomes(), space, history.noise, seat.fit),
    }
    for name, act in per_round.items():
        act()  # imports, and what is remembered from round to round
        found[f"round: {name}"] = timed(fresh(act), most=20)
    state = proposer._state(index)
    for name in AGENTS:
        agent = seat.agent(name)
        agent.ask(state, K)
        found[f"ask: {name}"] = timed(lambda agent=agent: agent.ask(state, K), most=3)
    found["MB peak"] = peak_mb()
    seat.close()
    return {**found, "MB of its fits": seat.fit.peak_mb}


MEASURES: dict[str, Callable[..., dict[str, float]]] = {
    "replay": replay,
    "resume": resume,
    "report": write_report,
    "events": events,
    "steps": steps,
}


def apart(name: str, *words: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", name, *map(str, words)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return found


def command(module: str, *words: str) -> dict[str, float]:
    """A command line of the package: seconds, and its peak memory."""
    program = (
        f"import atexit, runpy, sys; sys.argv = {[module, *words]!r}; "
        "atexit.register(lambda: print(open('/proc/self/status').read(), file=sys.stderr)); "
        f"runpy.run_module({module!r}, run_name='__main__')"
    )
    begun = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    seconds, told = time.perf_counter() - begun, process.stderr.split()
    assert process.returncode == 0, process.stderr
    return {"s": seconds, "MB peak": int(told[told.index("VmHWM:") + 1]) / 1024}


def measure(folder: Path, tiers: bool, trials: int) -> None:
    layout = RunLayout(folder / "large")
    size = layout.journal.stat().st_size / 2**20
    num_events = layout.journal.read_bytes().count(b"\n")
    print(f"\n{'two tiers, async' if tiers else 'one tier'}: {num_events} events, {size:.1f} MB of journal")
    pace = json.loads((folder / "pace.json").read_text())
    print(
        "made, seconds for 500 trials:",
        ", ".join(f"{seen}: {seconds:.1f}" for seen, seconds in pace[:: len(pace) // 5 or 1]),
    )
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        lengths = [n for n in AT if n <= trials] or [trials]
        copies = {n: found for n in lengths if (found := cut(layout, Path(scratch), n))}
        whole = cut(layout, Path(scratch) / "whole", trials)
        assert whole
        _show("replay", apart("replay", whole.root))
        _show("events", apart("events", whole.root))
        _show("status", command("autoresearch_hpc.status", str(layout.root)))
        _show("report.write_all", apart("report", layout.root))
        _show("report", command("autoresearch_hpc.report", str(layout.root)))
        tables = {n: apart("steps", copy.root, tiers, trials) for n, copy in copies.items()}
        shutil.rmtree(whole.root)
        whole = cut(layout, Path(scratch) / "whole", trials)
        assert whole
        (whole.root / "rounds").symlink_to(layout.root / "rounds")
        _show("resumed controller", apart("resume", whole.root, tiers, trials))
    names = list(next(iter(tables.values())))
    print(f"{'ms':<40}" + "".join(f"{n:>10,}" for n in tables))
    for name in names:
        print(f"{name:<40}" + "".join(f"{table[name]:>10.2f}" for table in tables.values()))


def _show(name: str, found: Mapping[str, float]) -> None:
    print(f"{name:<20}" + "  ".join(f"{what} {value:.2f}" for what, value in found.items()), flush=True)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a large run costs.")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--tiers", action="store_true", help="only the run on two kinds of GPU")
    parser.add_argument("--one", action="store_true", help="only the run on one kind of GPU")
    parser.add_argument("--keep", type=Path, help="a folder for the runs")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    logging.getLogger("autoresearch_hpc").setLevel(logging.ERROR)
    if options.measure:
        name, root, *rest = options.measure
        more = [rest[0] == "True", int(rest[1])] if rest else []
        print(json.dumps(MEASURES[name](Path(root), *more)))
        return 0
    with tempfile.TemporaryDirectory(prefix="journal-") as scratch:
        where = (options.keep or Path(scratch)).resolve()
        for tiers in (False, True):
            if (tiers and options.one) or (not tiers and options.tiers):
                continue
            folder = where / f"{'tiers' if tiers else 'one'}-{options.trials}"
            if not folder.exists():
                make(folder, tiers, options.trials)
            measure(folder, tiers, options.trials)
    return 0


if __name__ == "__main__":
    sys.exit(main())
