"""From a configuration to a controller at work: everything is checked before anything is made.

A run's directory appears only once the repository, the script, the plan, the data and the cluster have been found
good. An existing one is resumed, if its configuration is the same where it matters.
"""

import logging
import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from autoresearch_hpc import __version__, agents, cluster, decide, preflight, report, rundir
from autoresearch_hpc.budget import Budget
from autoresearch_hpc.candidates import CandidateMaker
from autoresearch_hpc.combine import Combiner
from autoresearch_hpc.config import Config
from autoresearch_hpc.controller import Controller
from autoresearch_hpc.dataset import Dataset
from autoresearch_hpc.desk import RunDesk
from autoresearch_hpc.effects import FitProcess
from autoresearch_hpc.errors import ClusterError, RepoError
from autoresearch_hpc.fanout import Fanout
from autoresearch_hpc.files import sha256_text, write_text_atomic
from autoresearch_hpc.history import History
from autoresearch_hpc.journal import Journal, stream
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.ledger import Ledger
from autoresearch_hpc.live import View, open_view
from autoresearch_hpc.lock import RunLock
from autoresearch_hpc.repo import Repo
from autoresearch_hpc.screening import Screen
from autoresearch_hpc.space import Space
from autoresearch_hpc.specs import SpecWriter, metric
from autoresearch_hpc.stopping import StopRequest
from autoresearch_hpc.submit import Submitter
from autoresearch_hpc.tiers import Tiers

_log = logging.getLogger(__name__)
_NICE = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that came to its end: where it lies, what it did, why it ended. `asked_to_stop`: too late for this run."""

    layout: RunLayout
    history: History
    reason: str
    asked_to_stop: bool


def run(config: Config) -> Finished:
    """Run or resume a search to its end.

    Raises ConfigError and its kin before anything is made, ClusterError, InterruptedRun, and AutoresearchError for a
    baseline that fails.
    """
    repo = Repo(Path(config.repo))
    runs_dir = Path(config.runs_dir).resolve()
    layout = RunLayout(runs_dir / rundir.choose_tag(config, runs_dir))
    past = _beginning(layout)
    if past.started_at:  # else a controller killed before its first event left nothing to resume
        rundir.require_same(config, layout)
    elif repo.branch(layout.root.name):
        branch = f"autoresearch/{layout.root.name}"
        raise RepoError(
            f"the branch {branch} is left from an earlier run", f"use another tag=, or git branch -D {branch}"
        )
    start = past.start_commit or preflight.start_commit(config, repo)
    space = preflight.check_plan(config, repo, start)
    decide.require_known(config.decide)
    for warning in preflight.environment_warnings(config):
        _log.warning("%s", warning)
    brief = preflight.brief(config, space)
    agents.build(brief)  # with a desk, once there is a run; what is missing shows now
    if past.started_at is None:  # a run that goes on does so without, if need be
        agents.require_answering(brief)
    used = {name: tier for name, tier in config.cluster.tiers.items() if name in Tiers.of(config).used}
    place = cluster.build(replace(config.cluster, tiers=used), config.task.pass_env)
    _check(place, config, layout, resuming=past.started_at is not None)
    rundir.check_writable(layout)
    dataset = preflight.open_data(config, past)
    layout = rundir.make_directory(layout, exclusive=config.tag is None)
    if place.durable:  # a login node has other users; but what runs on this machine would inherit it
        os.setpriority(os.PRIO_PROCESS, 0, max(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))
    with ExitStack() as stack:
        lock = stack.enter_context(RunLock(layout.lock))
        stop = stack.enter_context(_stop_request(layout, lock))  # from here on an interruption is told in the journal
        layout.cancel_request.unlink(missing_ok=True)  # asked of an earlier controller
        stack.enter_context(rundir.log_file(layout))
        history = History()
        ledger = Ledger(stack.enter_context(Journal(layout.journal, history.apply)), lock.verify, history)
        if ledger.history.started_at is None:
            write_text_atomic(layout.config, rundir.as_yaml(config))
            _record_start(ledger, config, layout, repo, start)
        else:
            rundir.require_same(config, layout)  # again: another controller may have begun it meanwhile
            ledger.record("run.resumed", pid=os.getpid(), host=socket.gethostname())
        _log.info("run=%s cluster=%s directory=%s", layout.root.name, place.name, layout.root)
        view = stack.enter_context(closing(open_view(config, layout, shared=place.durable)))
        screen = stack.enter_context(closing(_screen(config, space, dataset, protected=[repo.root, runs_dir])))
        reason = _controller(config, layout, ledger, repo, brief, screen, place, dataset, view, stop).run()
        report.write_all(ledger.history, layout)
    return Finished(layout=layout, history=ledger.history, reason=reason, asked_to_stop=bool(stop.reason))


def _beginning(layout: RunLayout) -> History:
    """The run up to its first result: what it started from, and on which data. The whole is read once it is ours."""
    history = History()
    for event in stream(layout.journal) if layout.journal.exists() else ():
        history.apply(event)
        if event.event == "trial.done":
            break
    return history


def _check(place: cluster.Cluster, config: Config, layout: RunLayout, *, resuming: bool) -> None:
    """Whether the cluster would take trials. One that took them before may only be under maintenance."""
    try:
        place.check(config.task.wall_limit_s, layout.root)
    except ClusterError as error:
        if not resuming:
            raise
        _log.warning("%s", error)


def _stop_request(layout: RunLayout, lock: RunLock) -> StopRequest:
    remedy = f"resume with tag={layout.root.name} and the same plan"
    return StopRequest(remedy, request=layout.cancel_request, fence=lock.raise_if_lost)


def _controller(
    config: Config,
    layout: RunLayout,
    ledger: Ledger,
    repo: Repo,
    brief: agents.Brief,
    screen: Screen,
    place: cluster.Cluster,
    dataset: Dataset | None,
    view: View,
    stop: StopRequest,
) -> Controller:
    tag = layout.root.name
    specs = SpecWriter(
        tag=tag,
        seed=config.seed,
        task=config.task,
        layout=layout,
        num_threads=place.num_threads,
        data_dir=dataset.root.resolve() if dataset else None,
        data_sha256=dataset.manifest.sha256 if dataset else None,
    )
    maker = CandidateMaker(repo, layout, config.task, tag)
    fit = FitProcess(stop.check)
    brief = replace(brief, desk=RunDesk(layout, ledger, screen, stop, config.budget.llm_usd), fit=fit)
    budget = Budget(
        config=config.budget,
        tiers=Tiers.of(config),
        job_limit_s=place.job_limit_s(config.task.wall_limit_s),
    )
    submitter = Submitter(config, layout=layout, ledger=ledger, cluster=place, specs=specs, budget=budget, stop=stop)
    fanout = Fanout(
        config, layout=layout, ledger=ledger, cluster=place, submitter=submitter, budget=budget, view=view, stop=stop
    )
    return Controller(
        config,
        layout=layout,
        ledger=ledger,
        repo=repo,
        agent=agents.build(brief),
        maker=maker,
        combiner=Combiner(brief, maker, repo.merge),
        fanout=fanout,
        budget=budget,
        fit=fit,
        stop=stop,
    )


def _screen(config: Config, space: Space | None, dataset: Dataset | None, protected: Sequence[Path]) -> Screen:
    names, meta = space.names if space else (), dataset.meta if dataset else None
    return Screen(config.task, required_knobs=names, meta=meta, protected=protected)


def _record_start(ledger: Ledger, config: Config, layout: RunLayout, repo: Repo, start: str) -> None:
    decided_by = metric(config.task)
    ledger.record(
        "run.started",
        tag=layout.root.name,
        uid=secrets.token_hex(4),
        version=__version__,
        config_sha256=sha256_text(rundir.as_yaml(config)),
        repo=str(repo.root),
        start_commit=start,
        metric=decided_by.name,
        direction=decided_by.direction.value,
        deciding_tier=Tiers.of(config).validates,
        pid=os.getpid(),
        host=socket.gethostname(),
    )
