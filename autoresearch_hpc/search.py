"""From a configuration to a controller at work: everything is checked before anything is made.

A run's directory appears only once the repository, the script, the plan, the data and the cluster have been found
good. An existing one is resumed, if its configuration is the same where it matters.
"""

import glob
import logging
import os
import re
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from autoresearch_hpc import __version__, agents, cluster, data, decide, knobs, report
from autoresearch_hpc.candidates import CandidateMaker
from autoresearch_hpc.config import Config, Dirty, TaskKind
from autoresearch_hpc.controller import Controller
from autoresearch_hpc.dataset import Dataset
from autoresearch_hpc.errors import ConfigError, DataError, RepoError
from autoresearch_hpc.files import sha256_text, write_text_atomic
from autoresearch_hpc.history import History
from autoresearch_hpc.journal import Journal, read
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.live import open_view
from autoresearch_hpc.lock import RunLock
from autoresearch_hpc.records import Knobs, knob_value
from autoresearch_hpc.repo import Repo
from autoresearch_hpc.space import Space, from_config
from autoresearch_hpc.specs import SpecWriter, metric

_log = logging.getLogger(__name__)

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}")
_ID = re.compile(r"r\d+-c\d+")
_MAX_NAMESAKES = 100
_FREE = ("budget", "cluster", "runs_dir", "repo", "plan.max_rounds", "corpus.prepare", "task.dirty")  # may change


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that came to its end: where it lies, what it did, why it ended."""

    layout: RunLayout
    history: History
    reason: str


def run(config: Config) -> Finished:
    """Run or resume a search to its end.

    Raises ConfigError and its kin before anything is made, ClusterError, InterruptedRun, and AutoresearchError for a
    baseline that fails.
    """
    repo = Repo(Path(config.repo))
    runs_dir = Path(config.runs_dir).resolve()
    tag = _tag(config, runs_dir)
    layout = RunLayout(runs_dir / tag)
    past = History.replay(read(layout.journal)) if layout.journal.exists() else History()
    exists = past.started_at is not None  # a controller killed before its first event leaves nothing to resume
    if exists:
        _require_same(config, layout)
    elif repo.branch(tag):
        raise RepoError(
            f"the branch autoresearch/{tag} is left from an earlier run",
            f"use another tag=, or git branch -D autoresearch/{tag}",
        )
    start = past.start_commit or _start_commit(config, repo)
    space = _check_plan(config, repo, start)
    decide.find(config.decide.rule)
    fixed: Knobs = {"SEQ_LEN": config.corpus.seq_len, "VOCAB_SIZE": config.corpus.vocab_size}
    agent = agents.build(config.agent, config.plan, space, config.seed, fixed)
    place = cluster.build(config.cluster)
    place.check(config.task.wall_limit_s, layout.root)
    _check_writable(layout)
    dataset = _data(config)
    _require_same_data(past, dataset)
    layout = _make_directory(layout, exclusive=config.tag is None)
    tag = layout.root.name
    with ExitStack() as stack:
        stack.enter_context(RunLock(layout.lock))
        stack.enter_context(_log_file(layout))
        journal = stack.enter_context(Journal(layout.journal))
        history = History.replay(journal.events)
        if history.started_at is None:
            write_text_atomic(layout.config, OmegaConf.to_yaml(OmegaConf.structured(config)))
            _start(config, journal, history, tag, start, repo)
        else:
            _require_same(config, layout)  # again: another controller may have begun it meanwhile
            history.apply(journal.append("run.resumed", pid=os.getpid(), host=socket.gethostname()))
        _log.info("run=%s cluster=%s directory=%s", tag, place.name, layout.root)
        controller = Controller(
            config,
            layout=layout,
            journal=journal,
            history=history,
            repo=repo,
            agent=agent,
            cluster=place,
            maker=CandidateMaker(repo, layout, config.task, tag),
            specs=SpecWriter(
                tag=tag,
                seed=config.seed,
                task=config.task,
                tier=config.cluster.tier,
                layout=layout,
                num_threads=place.num_threads,
                data_dir=dataset.root.resolve() if dataset else None,
                data_sha256=dataset.manifest.sha256 if dataset else None,
            ),
            view=open_view(config, layout),
        )
        reason = controller.run()
        report.write_all(history, layout)
    return Finished(layout=layout, history=history, reason=reason)


def _tag(config: Config, runs_dir: Path) -> str:
    if config.tag is None:
        stem = f"{config.plan.name}-{datetime.now():%Y%m%d-%H%M%S}"
        taken = {path.name for path in runs_dir.glob(f"{glob.escape(stem)}*")}
        tag = next(tag for n in range(1000) if (tag := f"{stem}-{n}" if n else stem) not in taken)
        given = f"plan.name={config.plan.name!r}"
    else:
        tag, given = config.tag, f"tag={config.tag!r}"
    if not _TAG.fullmatch(tag) or tag.endswith((".", ".lock")) or ".." in tag:
        raise ConfigError(f"{given} cannot name a branch", "use up to 40 letters, digits, '-', '_' and '.'")
    return tag


def _start_commit(config: Config, repo: Repo) -> str:
    editable = list(dict.fromkeys([*config.task.editable, config.task.script]))
    if config.task.dirty is Dirty.snapshot:
        return repo.snapshot(editable)
    if dirty := repo.dirty(editable):
        raise RepoError(
            f"uncommitted changes in {', '.join(dirty)}", "commit them, or take them along with task.dirty=snapshot"
        )
    return repo.head


def _check_plan(config: Config, repo: Repo, start: str) -> Space | None:
    """Try every edit that the plan names on the script; the space, checked against the script."""
    task, plan = config.task, config.plan
    maker = CandidateMaker(repo, RunLayout(Path()), task, "")
    for path in task.editable:
        repo.read(start, path)
    repo.require(start, task.export)
    base = _values(plan.base)
    if maker.rewrites:
        source = knobs.rewrite(repo.read(start, task.script), base, task.script)
        script: Knobs = knobs.read(source, task.script)
        knobs.check(source, list(config.space.knobs), task.script)
    else:
        source, script = "", base
    space = from_config(config.space, script)
    fixed = {"SEQ_LEN": config.corpus.seq_len, "VOCAB_SIZE": config.corpus.vocab_size}
    earlier = {"baseline"}
    for candidate in [c for r in plan.rounds for c in r.candidates]:
        settings = _values(candidate.knobs)
        if candidate.parent and candidate.parent not in earlier and not _ID.fullmatch(candidate.parent):
            raise ConfigError(
                f"candidate {candidate.title or candidate.name!r} builds on {candidate.parent!r}, no earlier candidate",
                f"the names so far are {', '.join(sorted(earlier))}",
            )
        earlier |= {candidate.name} if candidate.name else set()
        if maker.rewrites:
            knobs.rewrite(source, settings, task.script)
        elif unknown := sorted(set(settings) - set(base)):
            raise ConfigError(f"candidate {candidate.title!r} sets {', '.join(unknown)}", "give a default in plan.base")
        if space and (broken := space.check({**script, **settings}, fixed)):
            raise ConfigError(f"candidate {candidate.title!r} violates {broken[0]}", "correct the plan")
    if space and (broken := space.check(script, fixed)):
        raise ConfigError(f"the baseline violates {broken[0]}", "set other values in plan.base")
    return space


def _values(settings: Mapping[str, object]) -> Knobs:
    try:
        return {name: knob_value(value) for name, value in settings.items()}
    except ValueError as error:
        raise ConfigError(str(error), "correct the plan") from error


def _data(config: Config) -> Dataset | None:
    if config.task.kind is not TaskKind.gpt:
        return None
    corpus = config.corpus
    dataset = Dataset(data.prepare(corpus) if corpus.prepare else corpus.path)
    m = dataset.manifest
    if (m.corpus, m.vocab_size, m.seq_len) != (corpus.name, corpus.vocab_size, corpus.seq_len):
        raise DataError(
            f"{dataset.root} holds {m.corpus} with vocabulary {m.vocab_size} and {m.seq_len} tokens a row, not "
            f"{corpus.name} with {corpus.vocab_size} and {corpus.seq_len}",
            "prepare what the configuration asks for: python -m autoresearch_hpc.prepare",
        )
    return dataset


def _require_same_data(past: History, dataset: Dataset | None) -> None:
    """Raise DataError where a run's earlier trials saw other data: their scores could not be compared."""
    before = next((result.data_sha256 for result in past.results() if result.data_sha256), None)
    if dataset and before and before != dataset.manifest.sha256:
        raise DataError(
            f"{dataset.root} is not the data that run {past.tag} started with",
            "bring the old data back, or use another tag=",
        )


def _check_writable(layout: RunLayout) -> None:
    """Before data is prepared: whether the run's directory could be made."""
    try:
        nearest = next(path for path in (layout.root, *layout.root.parents) if path.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(f"{nearest} is not a directory")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write in {nearest}")
    except OSError as error:
        raise _not_writable(layout, error) from error


def _not_writable(layout: RunLayout, error: OSError) -> ConfigError:
    reason = error.strerror or error
    return ConfigError(f"the run's directory {layout.root} cannot be written: {reason}", "set runs_dir=")


def _make_directory(layout: RunLayout, exclusive: bool) -> RunLayout:
    """Make the run's directory; where `exclusive`, one that nobody else has, under a further name if need be."""
    runs_dir = layout.root.parent
    name, again = layout.root.name, 0
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        if not (runs_dir / ".gitignore").exists():
            write_text_atomic(runs_dir / ".gitignore", "*\n")  # runs stay out of the user's git status
        while True:
            try:
                layout.root.mkdir(exist_ok=not exclusive)
                return layout
            except FileExistsError:  # a controller that was started in the same second
                again += 1
                if not exclusive or again > _MAX_NAMESAKES:
                    raise
                layout = RunLayout(runs_dir / f"{name}-{again}")
    except OSError as error:
        raise _not_writable(layout, error) from error


def _start(config: Config, journal: Journal, history: History, tag: str, start: str, repo: Repo) -> None:
    decided_by = metric(config.task)
    history.apply(
        journal.append(
            "run.started",
            tag=tag,
            uid=secrets.token_hex(4),
            version=__version__,
            config_sha256=sha256_text(OmegaConf.to_yaml(OmegaConf.structured(config))),
            repo=str(repo.root),
            start_commit=start,
            metric=decided_by.name,
            direction=decided_by.direction.value,
            pid=os.getpid(),
            host=socket.gethostname(),
        )
    )


def _require_same(config: Config, layout: RunLayout) -> None:
    """Raise ConfigError naming the first key that would make a resumed run another search."""
    try:
        before = OmegaConf.to_container(OmegaConf.load(layout.config))
    except OSError as error:
        raise ConfigError(f"{layout.config} cannot be read: {error.strerror}", "use another tag=") from error
    now = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(config))))
    difference = next((d for d in _differences(before, now, "") if not d[0].startswith(_FREE)), None)
    if difference:
        key, old, new = difference
        raise ConfigError(
            f"run {layout.root.name} exists with {key}={old}, not {new}", "use another tag=, or the old value to resume"
        )


def _differences(before: Any, now: Any, prefix: str) -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*now, *before]))
        inner = [_differences(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else str(key)) for key in keys]
        return [difference for differences in inner for difference in differences]
    return [] if before == now or prefix == "tag" else [(prefix, before, now)]


@contextmanager
def _log_file(layout: RunLayout) -> Iterator[None]:
    """Copy the package's log to the run's controller.log."""
    logger = logging.getLogger("autoresearch_hpc")
    handler = logging.FileHandler(layout.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
