"""A round's way through a cluster that answers as it is told to; tests/slurm has the same on a real one."""

import itertools
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from autoresearch_hpc import collect
from autoresearch_hpc.budget import Budget
from autoresearch_hpc.cluster import JobState, Submission, Wait
from autoresearch_hpc.config import BudgetConfig, ClusterConfig, Config, PlanConfig, TaskConfig, TierConfig
from autoresearch_hpc.errors import ClusterError, InterruptedRun, NoAnswerError, NoRoomError
from autoresearch_hpc.fanout import Fanout
from autoresearch_hpc.files import read_json, write_json_atomic
from autoresearch_hpc.history import Round
from autoresearch_hpc.journal import Journal
from autoresearch_hpc.layout import RunLayout, TrialPaths
from autoresearch_hpc.ledger import Ledger
from autoresearch_hpc.live import PlainView
from autoresearch_hpc.records import (
    Candidate,
    Phases,
    Proposal,
    Status,
    TrialResult,
    TrialSpec,
    candidate_id,
    from_json,
    to_json,
)
from autoresearch_hpc.specs import SpecWriter
from autoresearch_hpc.stopping import StopRequest
from autoresearch_hpc.submit import Submitter
from autoresearch_hpc.tiers import Tiers

PENDING = JobState("PENDING", ended=False)
COMPLETED = JobState("COMPLETED", ended=True)
CANCELLED = JobState("CANCELLED", ended=True, status=Status.CANCELLED)


@dataclass
class ScriptedCluster:
    """Trials end at once with a result, but for what `launches` and `states` say; what it was asked is kept."""

    launches: list[Exception | None] = field(default_factory=list)  # what the next launches raise
    states: dict[str, JobState | list[JobState]] = field(default_factory=dict)  # by trial: what becomes of its job
    silent: int = 0  # so many times adopt cannot tell
    name: str = "slurm"
    durable: bool = True
    accounts: bool = False
    max_array: int = 1000
    num_threads: int | None = None
    queue: dict[str, dict[str, str]] = field(default_factory=dict)  # job name -> trial -> job
    submitted: list[Submission] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    _ids: "itertools.count[int]" = field(default_factory=lambda: itertools.count(100))

    def check(self, wall_limit_s: float, folder: Path) -> None:
        raise NotImplementedError

    def job_limit_s(self, wall_limit_s: float) -> float:
        return wall_limit_s

    def launch(self, submission: Submission) -> Mapping[str, str]:
        self.submitted.append(submission)
        error = self.launches.pop(0) if self.launches else None
        if error is None or "went in" in str(error):
            array = next(self._ids)
            self.queue[submission.job_name] = {t: f"{array}_{i}" for i, t in enumerate(submission.trials)}
            for trial, spec in submission.trials.items():
                if trial not in self.states:
                    end_well(spec)
        if error:
            raise error
        return self.queue[submission.job_name]

    def adopt(self, submission: Submission) -> Mapping[str, str] | None:
        if self.silent:
            self.silent -= 1
            return None
        return self.queue.get(submission.job_name, {})

    def poll(self, jobs: Mapping[str, str]) -> Mapping[str, JobState]:
        return {trial: self._state(trial) for trial in jobs}

    def _state(self, trial: str) -> JobState:
        state = self.states.get(trial, COMPLETED)
        if trial in self.cancelled:
            return CANCELLED
        if isinstance(state, list):
            return state.pop(0) if len(state) > 1 else state[0]
        return state

    def cancel(self, jobs: Mapping[str, str]) -> None:
        self.cancelled += jobs

    def charges(self, jobs: Mapping[str, str]) -> Mapping[str, float]:
        return {}


def end_well(spec_path: Path, value: float = 1.0) -> None:
    """What a worker leaves."""
    spec = from_json(TrialSpec, read_json(spec_path))
    paths = TrialPaths(spec_path.parent)
    state = JobState("COMPLETED", ended=True)
    trial = collect.Trial(id=spec.trial, candidate=spec.candidate, round=spec.round, job_name="j", submitted_at="")
    made = collect.missing_result(spec, trial, state, paths, paths.log)
    result = replace(
        made,
        status=Status.OK,
        metric=replace(made.metric, value=value),
        error=None,
        phases=Phases(total_s=36.0),
    )
    write_json_atomic(paths.result, to_json(result))
    if spec.inbox:
        Path(spec.inbox).mkdir(exist_ok=True)
        (Path(spec.inbox) / spec.trial).touch()


class Bench:
    """A journal with rounds that are ready to be trained."""

    def __init__(self, root: Path) -> None:
        self.layout = RunLayout(root / "tag 'ü'")
        self.layout.root.mkdir(parents=True)
        self.ledger = Ledger(Journal(self.layout.journal))
        self.config = Config(
            plan=PlanConfig(name="p"),
            cluster=ClusterConfig(poll_s=0.02, result_grace_s=0.05, late_result_s=0.2, max_retries=1),
            task=TaskConfig(train_s=60, startup_limit_s=1, grace_s=1, eval_limit_s=1),
        )
        self.cluster = ScriptedCluster()
        self.stop = StopRequest("resume")

    def propose(self, k: int, *tiers: str) -> Round:
        """The next round; `tiers` say where its candidates are tried."""
        history = self.ledger.history
        index = len(history.rounds)
        if not index:
            start: dict[str, object] = {"start_commit": "c", "config_sha256": "s", "metric": "val_bpb"}
            self.ledger.record("run.started", tag="tag", uid="uid", direction="min", **start)
        ids = [candidate_id(index, i) for i in range(k)]
        proposals = {id_: to_json(Proposal(title=id_)) for id_ in ids}
        self.ledger.record("round.proposed", round=index, base="c", proposals=proposals)
        made = [Candidate(id=i, round=index, proposal=Proposal(title=i), parent="c", commit="f" * 40) for i in ids]
        places = dict(zip(ids, tiers * (k if len(tiers) == 1 else 1), strict=True)) if tiers else {}
        self.ledger.record("round.committed", round=index, candidates=[to_json(c) for c in made], tiers=places)
        return history.rounds[index]

    def passes(self, *rounds: Round, count: int = 3) -> None:
        """Train for so many passes, whatever comes."""
        calls = itertools.count()
        self.fanout().train(*rounds, until=lambda: next(calls) >= count)

    def end(self, *trials: str) -> None:
        """These are over, with a result."""
        for trial in trials:
            self.cluster.states[trial] = COMPLETED
            end_well(self.layout.trial(trial).spec)

    @property
    def arrays(self) -> list[tuple[int, str, int]]:
        """Round, tier and size of each submission."""
        return [(int(s.job_name.split("-r")[1][:2]), s.tier, len(s.trials)) for s in self.cluster.submitted]

    @property
    def specs(self) -> SpecWriter:
        return SpecWriter(
            tag="tag",
            seed=0,
            task=self.config.task,
            layout=self.layout,
            num_threads=None,
            data_dir=None,
            data_sha256=None,
        )

    def fanout(self) -> Fanout:
        """As a controller that starts, or starts again, makes it."""
        budget = Budget(
            config=self.config.budget,
            tiers=Tiers.of(self.config),
            job_limit_s=self.config.task.wall_limit_s,
        )
        submitter = Submitter(
            self.config,
            layout=self.layout,
            ledger=self.ledger,
            cluster=self.cluster,
            specs=self.specs,
            budget=budget,
            stop=self.stop,
        )
        return Fanout(
            self.config,
            layout=self.layout,
            ledger=self.ledger,
            cluster=self.cluster,
            submitter=submitter,
            budget=budget,
            view=PlainView(),
            stop=self.stop,
        )

    def events(self, *names: str) -> list[str]:
        return [e.event for e in Journal(self.layout.journal).events if not names or e.event in names]

    @property
    def sizes(self) -> list[int]:
        return [len(submission.trials) for submission in self.cluster.submitted]

    def statuses(self) -> list[Status]:
        return [e.result.status for e in self.ledger.history.entries() if e.result]


def train_whole(fanout: Fanout, *rounds: Round) -> None:
    """Train until one of the rounds has all its results, of which one at least has to be none of the cluster's."""
    fanout.train(*rounds, until=lambda: any(round_.complete for round_ in rounds))
    for round_ in rounds:
        if round_.complete:
            fanout.require_one(round_)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr("autoresearch_hpc.submit._IN_FLIGHT_S", {"slurm": 0.3, "local": 0.3})
    monkeypatch.setattr("autoresearch_hpc.pacing._FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr("autoresearch_hpc.pacing._LOOK_S", 0.05)
    return Bench(tmp_path)


def test_a_round_is_one_array(bench: Bench) -> None:
    round_ = bench.propose(4)
    train_whole(bench.fanout(), round_)
    assert bench.sizes == [4]
    assert bench.statuses() == [Status.OK] * 4
    assert bench.events("submit.intent", "submit.done", "submit.refused") == ["submit.intent", "submit.done"]
    assert list(bench.layout.inbox.iterdir()) == []
    assert [t.job for e in round_.entries.values() for t in e.trials] == ["100_0", "100_1", "100_2", "100_3"]


def test_the_cluster_bounds_an_array(bench: Bench) -> None:
    bench.cluster.max_array = 3
    train_whole(bench.fanout(), bench.propose(7))
    assert bench.sizes == [3, 3, 1]
    assert len({s.job_name for s in bench.cluster.submitted}) == 3


def test_what_fits_is_submitted_and_the_rest_when_there_is_room(bench: Bench) -> None:
    full = NoRoomError("QOSMaxSubmitJobPerUserLimit")
    bench.cluster.launches = [full, full, None, full, full, None]
    train_whole(bench.fanout(), bench.propose(5))
    assert bench.sizes == [5, 2, 1, 2, 1, 1, 2, 1]
    assert bench.statuses() == [Status.OK] * 5
    refused = [e for e in Journal(bench.layout.journal).events if e.event == "submit.refused"]
    assert len(refused) == 4
    assert refused[0].data["reason"] == "QOSMaxSubmitJobPerUserLimit"
    assert all(len(e.trials) == 1 and e.trials[0].id.endswith("t0") for e in bench.ledger.history.entries())


@pytest.mark.parametrize("answer", ["timed out, but it went in", "timed out"])
def test_an_sbatch_without_an_answer_is_looked_for_before_it_is_tried_again(bench: Bench, answer: str) -> None:
    bench.cluster.launches = [NoAnswerError(answer)]
    bench.cluster.silent = 2
    train_whole(bench.fanout(), bench.propose(2))
    assert bench.statuses() == [Status.OK] * 2
    went_in = "went in" in answer
    assert bench.sizes == ([2] if went_in else [2, 2])
    names = [s.job_name for s in bench.cluster.submitted]
    assert len(set(names)) == len(names), "a second submission has a name of its own"
    assert bench.events("submit.refused") == ([] if went_in else ["submit.refused"])


def test_a_refusal_ends_the_run_and_leaves_it_resumable(bench: Bench) -> None:
    bench.cluster.launches = [ClusterError("sbatch refused: invalid partition")]
    round_ = bench.propose(2)
    with pytest.raises(ClusterError, match="invalid partition"):
        train_whole(bench.fanout(), round_)
    assert round_.outstanding == []
    train_whole(bench.fanout(), round_)
    assert bench.statuses() == [Status.OK] * 2


def test_silence_ends_after_a_while_only(bench: Bench) -> None:
    bench.config.cluster.patience_min = 0.5 / 60
    bench.cluster.launches = [NoAnswerError("sbatch timed out")] * 100
    begun = time.monotonic()
    with pytest.raises(ClusterError, match="has not answered for 0 min: sbatch timed out"):
        train_whole(bench.fanout(), bench.propose(1))
    assert time.monotonic() - begun > 0.5


def test_a_successor_finds_what_was_submitted_and_submits_what_never_arrived(bench: Bench) -> None:
    round_ = bench.propose(4)
    ids = [f"{id_}-t0" for id_ in round_.entries]
    for part, name in ((ids[:2], "arrived"), (ids[2:], "lost")):
        bench.ledger.record("submit.intent", round=0, job_name=name, trials=part)
        for id_ in part:
            bench.specs.write(round_.entries[id_[:-3]].candidate, id_, "t")  # type: ignore[arg-type]
    bench.cluster.queue["arrived"] = {ids[0]: "7_0", ids[1]: "7_1"}
    for id_ in ids[:2]:
        end_well(bench.layout.trial(id_).spec)
        (bench.layout.inbox / id_).unlink()  # its announcement was taken in by the predecessor, its result was not
    train_whole(bench.fanout(), round_)
    assert bench.sizes == [2]
    assert list(bench.cluster.submitted[0].trials) == ids[2:]
    assert [t.job for e in round_.entries.values() for t in e.trials] == ["7_0", "7_1", "100_0", "100_1"]


def test_a_lost_trial_is_followed_by_another_on_another_node(bench: Bench) -> None:
    bench.cluster.states = {"r00-c01-t0": JobState("NODE_FAIL", ended=True, node="n3")}
    round_ = bench.propose(3)
    train_whole(bench.fanout(), round_)
    assert bench.sizes == [3, 1]
    assert [s.avoid for s in bench.cluster.submitted] == [(), ("n3",)]
    assert [t.id for t in round_.entries["r00-c01"].trials] == ["r00-c01-t0", "r00-c01-t1"]
    assert bench.statuses() == [Status.OK] * 3


def test_retries_are_bounded_and_the_others_are_judged(bench: Bench) -> None:
    fail = JobState("NODE_FAIL", ended=True, node="n3")
    bench.cluster.states = {"r00-c01-t0": fail, "r00-c01-t1": fail}
    train_whole(bench.fanout(), bench.propose(2))
    assert bench.statuses() == [Status.OK, Status.LOST]


@pytest.mark.parametrize("state", [CANCELLED, JobState("TIMEOUT", ended=True, status=Status.TIMEOUT)], ids=str)
def test_the_candidates_own_ends_are_final(bench: Bench, state: JobState) -> None:
    bench.cluster.states = {"r00-c00-t0": state}
    train_whole(bench.fanout(), bench.propose(2))
    assert bench.sizes == [2]
    assert bench.statuses() == [state.status, Status.OK]


def test_a_preempted_trial_is_tried_again_though_its_worker_left_a_result(bench: Bench) -> None:
    bench.cluster.states = {"r00-c00-t0": [PENDING, JobState("PREEMPTED", ended=True, node="n1")]}
    round_ = bench.propose(1)
    fan = bench.fanout()
    bench.specs.write(round_.entries["r00-c00"].candidate, "r00-c00-t0", "t")  # type: ignore[arg-type]
    paths = bench.layout.trial("r00-c00-t0")
    end_well(paths.spec)
    good = from_json(TrialResult, read_json(paths.result))
    stopped = replace(good, status=Status.CANCELLED, metric=replace(good.metric, value=None))
    write_json_atomic(paths.result, to_json(stopped))
    train_whole(fan, round_)
    assert bench.sizes == [1, 1]
    assert bench.cluster.submitted[1].avoid == (), "preemption is no fault of the node"
    assert bench.statuses() == [Status.OK]


def test_a_round_that_is_lost_as_a_whole_stops_the_run(bench: Bench) -> None:
    fail = JobState("NODE_FAIL", ended=True, node="n3")
    bench.cluster.states = {f"r00-c0{i}-t{j}": fail for i in range(2) for j in range(2)}
    round_ = bench.propose(2)
    with pytest.raises(ClusterError, match=r"round 0: every trial was lost.*NODE_FAIL on n3.*tag=tag goes on"):
        train_whole(bench.fanout(), round_)
    train_whole(bench.fanout(), round_)
    assert bench.statuses() == [Status.OK] * 2


def test_a_launch_that_failed_is_given_up_at_once_and_tried_elsewhere(bench: Bench) -> None:
    held = JobState("PENDING", ended=False, node="n2", wait=Wait.failed, reason="launch failed requeued held")
    bench.cluster.states = {"r00-c00-t0": held}
    round_ = bench.propose(2)
    train_whole(bench.fanout(), round_)
    assert bench.cluster.cancelled == ["r00-c00-t0"]
    first, second = round_.entries["r00-c00"].trials
    assert first.given_up == "never began: launch failed requeued held"
    assert first.result
    assert first.result.status is Status.LOST
    assert second.result
    assert second.result.status is Status.OK


def test_what_waits_for_ever_is_told_and_given_up_after_the_configured_wait(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.config.cluster.stuck_limit_min = 0.4 / 60
    stuck = JobState("PENDING", ended=False, wait=Wait.stuck, reason="AssocGrpGRES: the group's GPUs are in use")
    bench.cluster.states = {"r00-c00-t0": stuck, "r00-c01-t0": stuck, "r00-c02-t0": [stuck, stuck, COMPLETED]}
    round_ = bench.propose(4)
    late = bench.layout.trial("r00-c02-t0")
    begun = time.monotonic()
    fan = bench.fanout()
    bench.specs.write(round_.entries["r00-c02"].candidate, "r00-c02-t0", "t")  # type: ignore[arg-type]
    end_well(late.spec)
    with caplog.at_level(logging.WARNING):
        train_whole(fan, round_)
    assert time.monotonic() - begun > 0.4
    assert sorted(bench.cluster.cancelled) == ["r00-c00-t0", "r00-c01-t0"]
    assert bench.statuses() == [Status.LOST, Status.LOST, Status.OK, Status.OK]
    told = [r.message for r in caplog.records if "waits" in r.message]
    assert len(told) == 1
    assert "AssocGrpGRES: the group's GPUs are in use" in told[0]
    assert bench.sizes == [4], "it would wait again"


def test_a_job_that_ended_well_is_waited_for_longer(bench: Bench) -> None:
    """Its result is there, but another node's file system client does not show it yet."""
    bench.cluster.states = {"r00-c00-t0": COMPLETED, "r00-c01-t0": JobState("FAILED", ended=True)}
    bench.config.cluster.max_retries = 0
    round_ = bench.propose(2)
    fan = bench.fanout()
    begun = time.monotonic()

    def late(*_: object) -> None:
        if time.monotonic() - begun > 0.12:
            end_well(bench.layout.trial("r00-c00-t0").spec)

    bench.stop.check = late  # type: ignore[method-assign]
    train_whole(fan, round_)
    assert bench.statuses() == [Status.OK, Status.LOST]


def test_the_budget_bounds_what_is_under_way_and_leaves_out_what_never_fits(bench: Bench) -> None:
    limit_h, took_h = bench.config.task.wall_limit_s / 3600, 0.01
    bench.config.budget = BudgetConfig(gpu_hours=2 * limit_h + 0.5 * took_h)
    round_ = bench.propose(8)
    train_whole(bench.fanout(), round_)
    assert bench.sizes == [2, 1], "room comes back: a trial takes less than its limit"
    assert list(round_.entries) == ["r00-c00", "r00-c01", "r00-c02"]
    assert bench.events("round.shrunk") == ["round.shrunk"]
    assert bench.statuses() == [Status.OK] * 3


def test_a_retry_that_does_not_fit_the_budget_is_none(bench: Bench) -> None:
    bench.config.budget = BudgetConfig(max_trials=2)
    bench.cluster.states = {"r00-c00-t0": JobState("NODE_FAIL", ended=True, node="n1")}
    train_whole(bench.fanout(), bench.propose(2))
    assert bench.statuses() == [Status.LOST, Status.OK]
    assert bench.sizes == [2]


def test_ctrl_c_while_waiting_for_room(bench: Bench) -> None:
    bench.cluster.launches = [NoRoomError("limit")] * 100
    calls = itertools.count()

    def check() -> None:
        if next(calls) > 10:
            raise InterruptedRun("stopped")

    bench.stop.check = check  # type: ignore[method-assign]
    with pytest.raises(InterruptedRun):
        train_whole(bench.fanout(), bench.propose(3))


# several kinds of GPU, several rounds at a time


@pytest.fixture
def tiers(bench: Bench) -> Bench:
    """Two slots on h100, one on h200; what is submitted stays in the queue."""
    bench.config.cluster.gpus = None
    bench.config.cluster.tiers = {
        "h100": TierConfig(gres="gpu:h100:1", max_parallel=2, price_per_gpu_hour=2.0),
        "h200": TierConfig(gres="gpu:h200:1", max_parallel=1, price_per_gpu_hour=3.0),
    }
    ids = [f"r{r:02d}-c{c:02d}-t{t}" for r in range(3) for c in range(6) for t in range(3)]
    bench.cluster.states = dict.fromkeys(ids, PENDING)
    return bench


def test_each_tier_has_an_array_of_its_own(tiers: Bench) -> None:
    tiers.cluster.states = {}
    round_ = tiers.propose(3, "h100", "h200", "h100")
    train_whole(tiers.fanout(), round_)
    assert tiers.arrays == [(0, "h100", 2), (0, "h200", 1)]
    assert [list(s.trials) for s in tiers.cluster.submitted] == [["r00-c00-t0", "r00-c02-t0"], ["r00-c01-t0"]]
    assert len({s.job_name for s in tiers.cluster.submitted}) == 2
    told = {t.id: read_json(tiers.layout.trial(t.id).spec)["tier"] for t in round_.trials}
    assert told == {"r00-c00-t0": "h100", "r00-c01-t0": "h200", "r00-c02-t0": "h100"}
    assert {t.id: t.tier for t in round_.trials} == told
    again = Ledger(Journal(tiers.layout.journal)).history
    assert {t.id: t.tier for t in again.trials()} == told
    assert tiers.statuses() == [Status.OK] * 3


def test_a_candidate_that_is_wanted_on_two_tiers_is_in_both_arrays(tiers: Bench) -> None:
    tiers.cluster.states = {}
    round_ = tiers.propose(1, "h100")
    tiers.ledger.record("trials.wanted", round=0, stage="array on h200", tier="h200", trials={"r00-c00": 2})
    train_whole(tiers.fanout(), round_)
    assert sorted((s.tier, *s.trials) for s in tiers.cluster.submitted) == [
        ("h100", "r00-c00-t2"), ("h200", "r00-c00-t0", "r00-c00-t1")
    ]  # fmt: skip


def test_an_array_that_has_a_tier_for_itself_may_be_larger_than_its_slots(tiers: Bench) -> None:
    round_ = tiers.propose(5, "h100")
    tiers.passes(round_)
    assert tiers.arrays == [(0, "h100", 5)], "Slurm holds back what is too much"


def test_what_does_not_fit_beside_what_is_under_way_waits(tiers: Bench) -> None:
    first, second = tiers.propose(1, "h100"), tiers.propose(4, "h100", "h200", "h100", "h200")
    tiers.passes(first, second)
    assert tiers.arrays == [(0, "h100", 1), (1, "h100", 1), (1, "h200", 2)]
    tiers.passes(first, second)
    assert len(tiers.arrays) == 3, "one that waits on h100 stays where it is"
    tiers.end("r00-c00-t0")
    tiers.passes(first, second)
    assert tiers.arrays[3:] == [(1, "h100", 1)]
    assert second.missing == {}


def test_a_backlog_lets_so_many_more_into_the_queue(tiers: Bench) -> None:
    tiers.config.cluster.backlog = 2
    first, second = tiers.propose(1, "h100"), tiers.propose(6, "h100")
    tiers.passes(first, second)
    assert tiers.arrays == [(0, "h100", 1), (1, "h100", 3)], "two slots and two more"
    tiers.end("r00-c00-t0", "r01-c00-t0")
    tiers.passes(first, second)
    assert sum(size for _, _, size in tiers.arrays[2:]) == 2


def test_a_cluster_without_a_limit_takes_everything(bench: Bench) -> None:
    bench.cluster.states = {f"r{r:02d}-c{c:02d}-t0": PENDING for r in range(2) for c in range(6)}
    first, second = bench.propose(5), bench.propose(6)
    bench.passes(first, second)
    assert bench.sizes == [5, 6]


def test_two_rounds_are_trained_together_until_one_has_all_its_results(tiers: Bench) -> None:
    first, second = tiers.propose(1, "h100"), tiers.propose(1, "h200")
    del tiers.cluster.states["r01-c00-t0"]
    train_whole(tiers.fanout(), first, second)
    assert (first.complete, second.complete) == (False, True)
    tiers.end("r00-c00-t0")
    train_whole(tiers.fanout(), first)
    assert first.complete
    assert tiers.arrays == [(0, "h100", 1), (1, "h200", 1)]


def test_whoever_trains_says_when_it_is_enough(tiers: Bench) -> None:
    """Before all results of a round are there, since a slot is free; or after it, since the round is not full."""
    round_ = tiers.propose(2, "h100")
    del tiers.cluster.states["r00-c01-t0"]
    tiers.fanout().train(round_, until=lambda: len(tiers.ledger.history.outstanding) == 1)
    assert [t.id for t in round_.outstanding] == ["r00-c00-t0"]
    tiers.end("r00-c00-t0")
    calls = itertools.count()
    tiers.fanout().train(round_, until=lambda: next(calls) > 4)
    assert round_.complete
    assert next(calls) > 4
    tiers.fanout().train(round_, until=lambda: True)


@pytest.mark.parametrize("in_doubt", [False, True])
def test_ctrl_c_cancels_the_trials_of_all_rounds(tiers: Bench, in_doubt: bool) -> None:
    first, second = tiers.propose(1, "h100"), tiers.propose(2, "h200")
    tiers.passes(first, second)
    if in_doubt:
        for round_ in (first, second):
            for trial in round_.trials:
                trial.job = None
    fan = tiers.fanout()
    assert fan.interrupt() == [], "no signal came"
    tiers.stop.signal = signal.SIGINT
    assert fan.interrupt() == ["r00-c00-t0", "r01-c00-t0", "r01-c01-t0"]
    assert sorted(tiers.cluster.cancelled) == ["r00-c00-t0", "r01-c00-t0", "r01-c01-t0"]


def test_a_successor_finds_the_submissions_of_two_rounds(tiers: Bench) -> None:
    first, second = tiers.propose(2, "h100"), tiers.propose(2, "h200")
    for round_, tier in ((first, "h100"), (second, "h200")):
        ids = [f"{id_}-t0" for id_ in round_.entries]
        name = f"tag-uid-r{round_.index:02d}-a0"
        tiers.ledger.record("submit.intent", round=round_.index, job_name=name, tier=tier, trials=ids)
        for id_ in ids:
            tiers.specs.write(round_.entries[id_[:-3]].candidate, id_, tier)  # type: ignore[arg-type]
        tiers.cluster.queue[name] = {ids[0]: f"{round_.index + 7}_0", ids[1]: f"{round_.index + 7}_1"}
        tiers.end(*ids)
    history = Ledger(Journal(tiers.layout.journal)).history
    tiers.fanout().train(first, second, until=lambda: first.complete and second.complete)
    assert tiers.arrays == [], "nothing is submitted twice"
    assert [t.job for t in tiers.ledger.history.trials()] == ["7_0", "7_1", "8_0", "8_1"]
    assert [t.tier for t in history.trials()] == ["h100", "h100", "h200", "h200"]


def test_a_lost_trial_is_followed_by_another_on_its_tier(tiers: Bench) -> None:
    tiers.cluster.states = {"r00-c01-t0": JobState("NODE_FAIL", ended=True, node="n3")}
    train_whole(tiers.fanout(), tiers.propose(2, "h100", "h200"))
    assert tiers.arrays == [(0, "h100", 1), (0, "h200", 1), (0, "h200", 1)]
    assert tiers.statuses() == [Status.OK] * 2


def test_nothing_is_left_out_while_anything_is_under_way(tiers: Bench) -> None:
    """What fits no more may fit once a trial has turned out cheaper; each tier's rest is left out then."""
    tiers.config.budget = BudgetConfig(max_trials=2)
    first, second = tiers.propose(1, "h100"), tiers.propose(3, "h100", "h200", "h200")
    tiers.passes(first, second)
    assert tiers.arrays == [(0, "h100", 1), (1, "h100", 1)]
    assert tiers.events("round.shrunk") == []
    tiers.end("r00-c00-t0")
    tiers.passes(first, second)
    assert tiers.events("round.shrunk") == [], "one is still under way"
    tiers.end("r01-c00-t0")
    tiers.passes(first, second)
    assert tiers.events("round.shrunk") == ["round.shrunk"]
    shrunk = [e.data for e in Journal(tiers.layout.journal).events if e.event == "round.shrunk"]
    assert [(d["round"], d["tier"], d["candidates"]) for d in shrunk] == [(1, "h200", ["r01-c01", "r01-c02"])]
    assert list(second.entries) == ["r01-c00"]
    assert second.complete


def test_nor_of_a_round_of_which_nothing_is_under_way_while_another_trains(tiers: Bench) -> None:
    tiers.config.budget = BudgetConfig(max_trials=1)
    first, second = tiers.propose(1, "h100"), tiers.propose(1, "h200")
    tiers.passes(first, second)
    assert (tiers.arrays, tiers.events("round.shrunk")) == ([(0, "h100", 1)], [])
    tiers.end("r00-c00-t0")
    tiers.passes(first, second)
    assert tiers.events("round.shrunk") == ["round.shrunk"]


def test_the_budget_leaves_out_what_is_wanted_on_one_tier_only(tiers: Bench) -> None:
    tiers.cluster.states = {}
    tiers.config.budget = BudgetConfig(max_trials=2)
    round_ = tiers.propose(2, "h100")
    train_whole(tiers.fanout(), round_)
    tiers.ledger.record("trials.wanted", round=0, stage="validation", tier="h200", trials={"r00-c00": 2})
    train_whole(tiers.fanout(), round_)
    assert tiers.arrays == [(0, "h100", 2)]
    assert list(round_.entries) == ["r00-c00", "r00-c01"]
    assert tiers.statuses() == [Status.OK] * 2


def test_a_part_of_a_round_that_is_lost_does_not_stop_the_others(tiers: Bench) -> None:
    """Its round is not all proposed yet, and others train: whoever judges says when a round was lost as a whole."""
    first, second = tiers.propose(1, "h100"), tiers.propose(1, "h100")
    for number in range(2):
        tiers.cluster.states[f"r01-c00-t{number}"] = JobState("NODE_FAIL", ended=True, node="n1")
    fan = tiers.fanout()
    fan.train(first, second, until=lambda: second.complete)
    assert [t.id for t in first.outstanding] == ["r00-c00-t0"]
    with pytest.raises(ClusterError, match="round 1: every trial was lost"):
        fan.require_one(second)
    assert not second.complete, "whoever resumes trains it again"


def test_ten_thousand_trials_cost_one_directory_scan_a_second(
    bench: Bench, count: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)  # of 10,000 specs: only what comes after is measured
    bench.cluster.max_array = 4000
    bench.config.cluster.poll_s = 1.0
    ids = [f"r00-c{i:02d}-t0" for i in range(10_000)]
    bench.cluster.states = dict.fromkeys(ids, PENDING)
    round_ = bench.propose(10_000)
    fan = bench.fanout()
    fan._submitter.submit(round_)
    assert bench.sizes == [4000, 4000, 2000]
    before, begun, looks = len(count()), time.monotonic(), 0
    while time.monotonic() - begun < 4:
        fan._collect()
        looks += 1
        time.sleep(0.05)
    seen = count()[before:]
    assert 3 <= len([line for line in seen if line.startswith("scandir")]) <= 5, seen[:20]
    assert len(seen) <= 10, f"{len(seen)} other looks at files: {seen[:20]}"
    print(f"10,000 trials under way: {looks / 4:.0f} passes a second possible")
    assert looks > 8


@pytest.fixture
def count(tmp_path: Path) -> Callable[[], list[str]]:
    """What this process asks of the file system below tmp_path."""
    asked: list[str] = []

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event in ("os.scandir", "os.listdir", "open") and str(args[0]).startswith(str(tmp_path)):
            asked.append(f"{event.removeprefix('os.')} {args[0]}")

    sys.addaudithook(hook)
    return lambda: list(asked)
