"""The way of trials into the cluster's queue, and the search for those of which only the intent is known.

Intent is journaled before an array is submitted and its job id after. A submission of which only the intent is known
is *in doubt*, whether its controller died or Slurm did not answer: it is looked for by its name until it is found, or
until it could not be on its way any more. So no array is submitted twice and none is lost.

An array holds trials of one round and one tier. What does not fit on a tier beside the trials that are under way there
waits here; only an array that has the tier for itself may be larger, since Slurm then holds back what is too much.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from autoresearch_hpc import collect
from autoresearch_hpc.budget import Budget
from autoresearch_hpc.cluster import Cluster, Submission
from autoresearch_hpc.config import Config
from autoresearch_hpc.errors import ClusterError, NoAnswerError, NoRoomError
from autoresearch_hpc.history import Entry, Round, Trial
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.ledger import Ledger
from autoresearch_hpc.pacing import Pacing
from autoresearch_hpc.records import trial_id
from autoresearch_hpc.specs import SpecWriter
from autoresearch_hpc.stopping import StopRequest
from autoresearch_hpc.tiers import Tiers

_log = logging.getLogger(__name__)

_IN_FLIGHT_S = {"slurm": 10.0, "local": 5.0}  # how long a submission may outlive its controller before it is seen
_WRITES_AT_ONCE = 8


class Submitter:
    """Submits the missing trials of open rounds.

    `pacing` says when the next try is due, `strangers` are trials whose job ids mean nothing to this controller.
    """

    def __init__(
        self,
        config: Config,
        *,
        layout: RunLayout,
        ledger: Ledger,
        cluster: Cluster,
        specs: SpecWriter,
        budget: Budget,
        stop: StopRequest,
    ) -> None:
        self._config, self._layout, self._tiers = config.cluster, layout, Tiers.of(config)
        self._wall_limit_s = config.task.wall_limit_s
        self._record, self._history = ledger.record, ledger.history
        self._cluster, self._specs, self._budget, self._stop = cluster, specs, budget, stop
        self.pacing = Pacing(patience_s=60 * config.cluster.patience_min)
        self.strangers = set() if cluster.durable else {t.id for t in self._history.outstanding}

    def submit(self, round_: Round) -> None:
        """All trials that are missing: an array for each tier, or as few as limits and the budget allow.

        Not while some that an interruption has cancelled are still to end: what follows them goes out together.
        """
        if any(trial.cancelled for trial in round_.outstanding):
            return
        for tier in dict.fromkeys(want.tier for want in round_.missing):
            while self.pacing.due and (waiting := self._missing(round_, tier)):
                room = self._budget.room(self._history)
                fitting = waiting if room.trials is None else waiting[: room.trials]
                if not fitting:
                    if not self._history.outstanding:
                        self._shrink(round_, tier, room.cap)
                    break
                free = self._free(tier, len(fitting))
                if not free:
                    break
                size = min(self._cluster.max_array, self.pacing.size or free, free)
                self._launch(round_, tier, dict(fitting[:size]))

    def _free(self, tier: str, wanted: int) -> int:
        """How many of these trials may go into the tier's queue now."""
        slots = self._tiers.slots.get(tier)
        under_way = sum(trial.tier == tier for trial in self._history.outstanding)
        if slots is None or not under_way:
            return wanted
        return max(0, min(wanted, slots + self._config.backlog - under_way))

    def _missing(self, round_: Round, tier: str) -> list[tuple[str, Entry]]:
        """Ids of the trials to submit: of one that has not been in a queue yet, or a further one."""
        free = [t for t in round_.trials if t.dropped is None and not t.job_name and not t.result]
        missing = []
        for want, count in round_.missing.items():
            if want.tier != tier:
                continue
            entry = self._history.entry(want.candidate)
            again = [t.id for t in free if t.want == want]
            new = (trial_id(want.candidate, len(entry.trials) + i) for i in range(count - len(again)))
            missing += [(id_, entry) for id_ in (*again, *new)]
        return missing

    def _launch(self, round_: Round, tier: str, part: Mapping[str, Entry]) -> None:
        """One array; the pacing hears whether it went into the queue."""
        trials = list(part)
        self._write_specs(part, tier or self._config.tier)
        job_name = f"{self._history.tag}-{self._history.uid}-r{round_.index:02d}-a{round_.num_arrays}"
        submission = self.submission(round_, job_name, trials, tier, self._avoid(part.values()))
        self._stop.check()
        self._record("submit.intent", round=round_.index, job_name=job_name, tier=tier, trials=trials)
        try:
            jobs = self._cluster.launch(submission)
        except NoAnswerError as error:
            self.pacing.unanswered(error)
            return
        except ClusterError as error:
            self._record("submit.refused", round=round_.index, job_name=job_name, trials=trials, reason=str(error))
            if not isinstance(error, NoRoomError):
                raise
            self.pacing.refused(len(part), error)
            return
        self._record("submit.done", round=round_.index, job_name=job_name, jobs=dict(jobs))
        self.pacing.accepted()
        on = f" tier={tier}" if len(self._tiers.slots) > 1 else ""
        _log.info("round=%d array=%s%s trials=%d submitted", round_.index, job_name, on, len(part))

    def _write_specs(self, part: Mapping[str, Entry], tier: str) -> None:
        """Side by side: a write that is to last waits for the filesystem."""

        def write(id_: str, entry: Entry) -> None:
            assert entry.candidate
            self._specs.write(entry.candidate, id_, tier)

        with ThreadPoolExecutor(_WRITES_AT_ONCE) as pool:
            for _ in pool.map(write, part.keys(), part.values()):
                pass

    def submission(
        self, round_: Round, job_name: str, trials: Sequence[str], tier: str, avoid: tuple[str, ...] = ()
    ) -> Submission:
        array = self._layout.array(round_.index, job_name)
        array.root.mkdir(parents=True, exist_ok=True)
        specs = {id_: self._layout.trial(id_).spec for id_ in trials}
        return Submission(
            job_name=job_name, trials=specs, array=array, tier=tier, wall_limit_s=self._wall_limit_s, avoid=avoid
        )

    def _avoid(self, part: Iterable[Entry]) -> tuple[str, ...]:
        """Nodes that have lost several candidates, and those that have lost one of these."""
        own = {t.node for entry in part for t in entry.trials if t.node and collect.is_nodes_fault(t)}
        return tuple(sorted(own | collect.faulty_nodes(self._history, self._config.max_node_faults)))

    def _shrink(self, round_: Round, tier: str, cap: str) -> None:
        left_out = [want.candidate for want in round_.missing if want.tier == tier]
        self._record("round.shrunk", round=round_.index, tier=tier, candidates=left_out, reason=cap)
        _log.warning("round=%d no further trials of %s: %s", round_.index, ", ".join(left_out), cap)

    def resolve(self, round_: Round) -> None:
        """Look for submissions in doubt, as soon as the pacing allows."""
        in_doubt: dict[str, list[Trial]] = {}
        for trial in round_.outstanding:
            if trial.job_name and (trial.job is None or trial.id in self.strangers):
                in_doubt.setdefault(trial.job_name, []).append(trial)
        if not in_doubt or not self.pacing.due:
            return
        for job_name, trials in in_doubt.items():
            submission = self.submission(round_, job_name, [t.id for t in trials], trials[0].tier)
            found = self._cluster.adopt(submission)
            if found is None:
                self.pacing.unanswered(NoAnswerError(f"squeue does not tell whether {job_name} was submitted"))
                return
            claims = {t.id: job for t in trials if (job := collect.claimant(self._layout.trial(t.id)))}
            jobs = {**claims, **found} if self._cluster.durable else dict(found)
            self.strangers -= jobs.keys()
            if jobs:
                self._record("submit.done", round=round_.index, job_name=job_name, jobs=jobs)
                self.pacing.accepted()
                _log.info("round=%d array=%s trials=%d adopted", round_.index, job_name, len(jobs))
            absent = [t for t in trials if t.id not in jobs]
            if absent and all(age_s(t) > _IN_FLIGHT_S[self._cluster.name] for t in absent):
                self._give_free(round_, job_name, absent)
            elif absent:
                self.pacing.look_again()

    def _give_free(self, round_: Round, job_name: str, trials: Sequence[Trial]) -> None:
        ids = [t.id for t in trials]
        self.strangers -= set(ids)
        reason = "it never reached the queue"
        self._record("submit.refused", round=round_.index, job_name=job_name, trials=ids, reason=reason)


def age_s(trial: Trial) -> float:
    """Seconds since the trial's submission."""
    return (datetime.now(UTC) - datetime.fromisoformat(trial.submitted_at)).total_seconds()
