"""Watches jobs in the background, so that nobody waits for Slurm: one thread asks squeue, one sacct, which may be slow.

They ask only while somebody lately wanted to know. squeue is asked once for all jobs: soon after something was done to
them or went another way than it should, else ever more rarely; that a job begins, or is done, need not be asked for. A
job that squeue does not list though it answered is looked for by sacct and scontrol; when they tell no end of it
either, it is gone. While squeue does not answer, only what has ended is told.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from autoresearch_hpc.cluster import questions
from autoresearch_hpc.cluster.protocol import JobState, Wait
from autoresearch_hpc.records import Status

_log = logging.getLogger(__name__)

_SOON_S = 2.0  # after jobs were cancelled; doubled up to the usual interval
_LAUNCHED_S = 4.0  # after jobs were submitted: most of those that cannot begin are known by then
_CHANGED_S = 4.0  # after it was heard that a job ended, or waits for what may never come
_INTEREST_S = 30.0  # nobody has asked us for so long: we do not ask either
_FORGOTTEN_S = 60.0  # unlisted for so long by a queue that answers: the job is gone
_SEARCH_S = 10.0  # between looks for unlisted jobs
_CHARGES_S, _CHARGES_MOST_S = 240.0, 600.0  # between questions for charges
_CHARGES_IDLE_S = 5.0  # the same once nothing runs any more: costs are wanted now
_LAG_S = 3.0  # accounting hears of an end a little later
_PLACE_S = 1.0  # accounting hears of a failed launch so much later; between questions where
_PLACE_PATIENCE_S = 6.0  # so long the end of a job whose launch failed is held back, for its node to be told with it
_MOST_ARRAYS = 5  # that scontrol, which takes one at a time, is asked about
_GONE = JobState("UNKNOWN", ended=True)
_TAKEN_OUT = JobState("CANCELLED", ended=True, status=Status.CANCELLED)


class Watcher:
    """States and charges of jobs, as last heard. `interval_s`: between questions to squeue while nothing changes."""

    def __init__(self, interval_s: float, accounting: questions.Accounting) -> None:
        self._interval_s = interval_s
        self._accounting = accounting
        self._news = threading.Condition()  # guards all of the following
        self._started = False
        self._wanted: set[str] = set()
        self._wanted_at = -1e9
        self._states: dict[str, JobState] = {}
        self._pause_s = min(_SOON_S, interval_s)
        self._queue_due = 0.0
        self._heard_at = 0.0  # the last answer of squeue
        self._silent = False  # it did not answer the last time
        self._unlisted: dict[str, float] = {}  # job -> since
        self._searched: dict[str, float] = {}  # job -> when the last search that included it was over
        self._waiting: set[str] = set()  # had not begun when last heard of
        self._failed_at: dict[str, float] = {}  # job whose launch failed -> when that was heard of
        self._unplaced: dict[str, float] = {}  # one of those, nobody knows on which node -> when to ask sacct
        self._places: dict[str, str] = {}
        self._owed: set[str] = set()
        self._charges: dict[str, float] = {}
        self._charges_asked_at = -1e9
        self._charges_due = 0.0
        self._charges_pause_s = _CHARGES_S

    def states(self, jobs: Collection[str]) -> dict[str, JobState]:
        """What is known of these jobs, which are watched from now on, and no others."""
        with self._news:
            self._show_interest()
            wanted = set(jobs)
            new = wanted - self._wanted
            self._wanted = wanted
            if new:
                self._hurry(_LAUNCHED_S)
                self._charges_due = max(self._charges_due, self._charges_asked_at + self._charges_least_s)
            return {job: state for job in wanted if (state := self._told(job))}

    def _told(self, job: str) -> JobState | None:
        """What is known of the job, with the node where its launch failed; no end of it before that is known."""
        state = self._states.get(job)
        if state and state.node is None and job in self._places:
            return replace(state, node=self._places[job])
        return None if state and state.ended and self._seeks_place(job) else state

    def _seeks_place(self, job: str) -> bool:
        """Whether accounting may soon tell where the job's launch failed."""
        failed_at = self._failed_at.get(job, -1e9)
        patient = time.monotonic() - failed_at < _PLACE_PATIENCE_S
        return patient and job not in self._places and not self._accounting.off

    def charges(self, jobs: Collection[str]) -> dict[str, float]:
        """GPU-seconds of these jobs, which have ended, as far as they are known."""
        with self._news:
            missing = {job for job in jobs if job not in self._charges}
            if missing and not self._accounting.off:
                self._show_interest()
            new, self._owed = missing - self._owed, missing
            if new:
                self._charges_pause_s = self._charges_least_s
                self._charges_due = max(self._charges_asked_at + self._charges_pause_s, time.monotonic() + _LAG_S)
                self._news.notify_all()
            return {job: self._charges[job] for job in jobs if job in self._charges}

    def submitted(self, jobs: Collection[str]) -> None:
        """These jobs are in the queue."""
        with self._news:
            self._waiting |= set(jobs)
            self._hurry(_LAUNCHED_S)

    def hurry(self) -> None:
        """Something was done to jobs: news is near."""
        with self._news:
            self._hurry(_SOON_S)

    def _hurry(self, pause_s: float) -> None:
        self._pause_s = min(pause_s, self._interval_s)
        self._queue_due = min(self._queue_due, time.monotonic() + self._pause_s)
        self._news.notify_all()

    def _show_interest(self) -> None:
        now = time.monotonic()
        if now - self._wanted_at > _INTEREST_S:  # what was heard long ago is no news
            self._states = {job: state for job, state in self._states.items() if state.ended}
            self._queue_due = now
            self._news.notify_all()
        self._wanted_at = now
        if not self._started:
            self._started = True
            for work, name in ((self._ask_queue, "squeue"), (self._ask_accounting, "sacct")):
                threading.Thread(target=self._loop, args=(work,), name=f"watch-{name}", daemon=True).start()

    def _loop(self, work: Callable[[], None]) -> None:
        failed = False
        while True:
            try:
                work()
            except Exception:  # noqa: BLE001  whatever it is: the run goes on, and the next question may be answered
                level = logging.DEBUG if failed else logging.ERROR
                _log.log(level, "asking Slurm failed; it is asked again", exc_info=True)
                failed = True
                time.sleep(self._interval_s)

    def _wait(self, due: Callable[[], float | None]) -> None:
        """Wait, with the lock held, until the moment that due tells, and until somebody is interested."""
        while True:
            now, when = time.monotonic(), due()
            if when is None or now - self._wanted_at > _INTEREST_S:
                self._news.wait()
            elif when > now:
                self._news.wait(when - now)
            else:
                return

    # squeue's thread

    def _ask_queue(self) -> None:
        with self._news:
            self._wait(lambda: self._queue_due if self._wanted else None)
            wanted = set(self._wanted)
        told = questions.squeue(wanted)
        with self._news:
            now = time.monotonic()
            changed = self._hear(wanted, told, now)
            self._pause_s = min(_CHANGED_S if changed else 2 * self._pause_s, self._interval_s)
            self._queue_due = now + self._pause_s
            self._news.notify_all()

    def _hear(self, wanted: set[str], told: Mapping[str, JobState] | None, now: float) -> bool:
        """Take in an answer of squeue, or its silence; whether any job went another way than it should."""
        before = {job: _course(self._states.get(job)) for job in wanted}
        ended = {job: state for job, state in self._states.items() if state.ended}
        if self._silent != (told is None):
            self._silent = told is None
            _log.warning("squeue %s", "does not answer: waiting until it does" if self._silent else "answers again")
        if told is None:
            self._states = ended
            return False
        self._heard_at = now
        listed = {job: told[job] for job in wanted if job in told}
        self._states = ended | listed
        self._waiting -= {job for job, state in self._states.items() if state.word != "PENDING"}
        self._waiting |= {job for job, state in listed.items() if state.word == "PENDING"}
        failing = {job for job, state in listed.items() if state.wait is Wait.failed}
        better = {job for job, state in listed.items() if not state.ended} - failing
        self._failed_at = {job: self._failed_at.get(job, now) for job in (failing | set(self._failed_at)) - better}
        self._unplaced = {
            job: self._unplaced.get(job, now + _PLACE_S) for job in self._failed_at if self._seeks_place(job)
        }
        self._unlisted = {job: self._unlisted.get(job, now) for job in wanted - set(self._states)}
        self._searched = {job: at for job, at in self._searched.items() if job in self._unlisted}
        self._conclude()
        return before != {job: _course(self._states.get(job)) for job in wanted}

    def _conclude(self) -> None:
        """Give up jobs that were looked for everywhere and long enough."""
        for job, since in list(self._unlisted.items()):
            if self._heard_at - since >= _FORGOTTEN_S and self._searched.get(job, -1.0) > since:
                self._states[job] = _GONE
                del self._unlisted[job]

    # sacct's thread

    def _ask_accounting(self) -> None:
        with self._news:
            self._wait(self._accounting_due)
            now = time.monotonic()
            unlisted = set() if self._silent else set(self._unlisted)
            owed = set(self._owed) if now >= self._charges_due else set()
            unplaced = {job for job, due in self._unplaced.items() if now >= due}
        answer = self._accounting.jobs(unlisted | owed | unplaced)
        told = answer or {}
        ends = {job: told[job].state for job in unlisted if job in told and told[job].state.ended}
        for array in questions.arrays_of(unlisted - set(ends))[:_MOST_ARRAYS]:
            shown = questions.scontrol(array) or {}
            ends |= {job: shown[job] for job in unlisted if job in shown and shown[job].ended}
        with self._news:
            now = time.monotonic()
            for job in unlisted & set(self._unlisted):
                self._searched[job] = now
                if job in ends:
                    self._states[job] = ends[job]
                    del self._unlisted[job]
                elif answer is not None and job not in told and self._taken_out(job, told):
                    self._states[job] = _TAKEN_OUT
                    del self._unlisted[job]
            self._conclude()
            self._places |= {job: node for job in unplaced if job in told and (node := told[job].node)}
            self._unplaced = {job: now + _PLACE_S for job in self._unplaced if self._seeks_place(job)}
            self._take_charges({job: account for job, account in told.items() if account.state.ended}, owed, now)

    def _taken_out(self, job: str, told: Collection[str]) -> bool:
        """Whether it was cancelled by itself while it waited: Slurm keeps no record of that, only of its array."""
        array = questions.array_of(job)
        return job in self._waiting and any(questions.array_of(other) == array for other in (*told, *self._states))

    def _accounting_due(self) -> float | None:
        unlisted = () if self._silent else self._unlisted
        moments = [self._searched[job] + _SEARCH_S if job in self._searched else 0.0 for job in unlisted]
        moments += self._unplaced.values()
        if self._owed and not self._accounting.off:
            moments.append(self._charges_due)
        return min(moments, default=None)

    @property
    def _charges_least_s(self) -> float:
        others = self._wanted - self._owed  # squeue may not have told yet that those have ended
        busy = any(job not in self._states or not self._states[job].ended for job in others)
        return _CHARGES_S if busy else _CHARGES_IDLE_S

    def _take_charges(self, told: Mapping[str, questions.Account], asked: set[str], now: float) -> None:
        known = asked & set(told)
        self._charges |= {job: told[job].gpu_s for job in known}
        self._owed -= known
        if asked:
            patient_s = 0.0 if known else min(2 * self._charges_pause_s, _CHARGES_MOST_S)
            self._charges_pause_s = max(self._charges_least_s, patient_s)
            self._charges_asked_at = now
            self._charges_due = now + self._charges_pause_s


def _course(state: JobState | None) -> tuple[bool, Wait]:
    """Whether a job has ended, and what it waits for; the reason may be another one each time."""
    return (state.ended, state.wait) if state else (False, Wait.turn)
