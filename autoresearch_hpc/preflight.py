"""What is checked before a run makes anything: the repository, every edit that the plan names, the data."""

import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from autoresearch_hpc import environment, knobs
from autoresearch_hpc.agents.protocol import Brief
from autoresearch_hpc.candidates import CandidateMaker
from autoresearch_hpc.config import Config, CorpusConfig, Device, Dirty, KnobsBy, TaskKind
from autoresearch_hpc.data.apart import prepare_apart
from autoresearch_hpc.dataset import Dataset
from autoresearch_hpc.errors import ConfigError, DataError, RepoError
from autoresearch_hpc.history import History
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.records import Knobs, knob_value
from autoresearch_hpc.repo import Repo
from autoresearch_hpc.space import Space, from_config

_ID = re.compile(r"r\d+-c\d+")
_USED, _ASSIGNED = (re.compile(text) for text in (r"\$\{?([A-Za-z_]\w*)", r"\b([A-Za-z_]\w*)="))
_THE_JOBS_OWN = re.compile(r"SLURM\w*|PWD|OLDPWD|SHLVL")


def fixed_values(corpus: CorpusConfig) -> Knobs:
    """What a space's bounds may name beside knobs."""
    return {"SEQ_LEN": corpus.seq_len, "VOCAB_SIZE": corpus.vocab_size}


def start_commit(config: Config, repo: Repo) -> str:
    """The commit that the baseline builds on. Raises RepoError for uncommitted changes that were not asked for."""
    editable = list(dict.fromkeys([*config.task.editable_paths, config.task.script]))
    if config.task.dirty is Dirty.snapshot:
        return repo.snapshot(editable)
    if dirty := repo.dirty(editable):
        raise RepoError(
            f"uncommitted changes in {', '.join(dirty)}", "commit them, or take them along with task.dirty=snapshot"
        )
    return repo.head


def check_plan(config: Config, repo: Repo, start: str) -> Space | None:
    """Try every edit that the plan names on the script; the space, checked against the script."""
    task, plan = config.task, config.plan
    maker = CandidateMaker(repo, RunLayout(Path()), task, "")
    for path in task.editable_paths:
        repo.read(start, path)
    repo.require(start, task.export_paths)
    base = _values(plan.base)
    if maker.rewrites:
        source = knobs.rewrite(repo.read(start, task.script), base, task.script)
        script: Knobs = knobs.read(source, task.script)
        knobs.check(source, list(config.space.knobs), task.script)
    else:
        source, script = "", base
    space = from_config(config.space, script)
    fixed = fixed_values(config.corpus)
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


def brief(config: Config, space: Space | None) -> Brief:
    """What the run's agent is built from, but for its desk."""
    rewrites = config.task.kind is TaskKind.gpt or config.task.knobs_by is KnobsBy.rewrite
    return Brief(
        config=config.agent,
        plan=config.plan,
        space=space,
        seed=config.seed,
        fixed=fixed_values(config.corpus),
        script=config.task.script if rewrites else None,
    )


def environment_warnings(config: Config) -> Iterator[str]:
    """What somebody may miss in the environment of jobs and trials, a line each."""
    task, cluster = config.task, config.cluster
    if secrets := environment.withheld(task.pass_env):
        own = "; a command may be given one in task.env" if task.kind is TaskKind.command else ""
        yield f"task.pass_env: what looks like a secret does not pass: {', '.join(secrets)}{own}"
    shell = "\n".join([*cluster.setup, cluster.python or ""])
    used = set(_USED.findall(shell)) - set(_ASSIGNED.findall(shell)) - set(environment.for_job(task.pass_env))
    if lost := sorted(name for name in used & set(os.environ) if not _THE_JOBS_OWN.fullmatch(name)):
        yield f"a job does not inherit {', '.join(lost)}: name it in task.pass_env, or set it in cluster.setup"
    if (
        task.kind is TaskKind.gpt
        and task.device is Device.cuda
        and not cluster.python
        and (folder := _without_bytecode())
    ):
        once = f"{sys.executable} -m compileall -q -j 0 {folder}"
        yield f"{folder} holds no bytecode of torch, which each trial takes 15 s to do without; once: {once}"


def _without_bytecode() -> Path | None:
    """Where torch is installed without bytecode, as some installers leave it. Trials write none."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return None
    module = Path(torch.origin).parent / "_inductor" / "lowering.py"  # of the last that are imported
    if not module.exists() or Path(importlib.util.cache_from_source(str(module))).exists():
        return None
    return module.parents[2]


def open_data(config: Config, past: History) -> Dataset | None:
    """The data of a gpt task, prepared where the corpus allows it. Raises DataError where it is not as configured."""
    if config.task.kind is not TaskKind.gpt:
        return None
    corpus = config.corpus
    dataset = Dataset(prepare_apart(corpus) if corpus.prepare else corpus.path)
    m = dataset.manifest
    if (m.corpus, m.vocab_size, m.seq_len) != (corpus.name, corpus.vocab_size, corpus.seq_len):
        raise DataError(
            f"{dataset.root} holds {m.corpus} with vocabulary {m.vocab_size} and {m.seq_len} tokens a row, not "
            f"{corpus.name} with {corpus.vocab_size} and {corpus.seq_len}",
            "prepare what the configuration asks for: python -m autoresearch_hpc.prepare",
        )
    _require_same_data(past, dataset)
    return dataset


def _require_same_data(past: History, dataset: Dataset) -> None:
    """Raise DataError where a run's earlier trials saw other data: their scores could not be compared."""
    before = next((result.data_sha256 for result in past.results() if result.data_sha256), None)
    if before and before != dataset.manifest.sha256:
        raise DataError(
            f"{dataset.root} is not the data that run {past.tag} started with",
            "bring the old data back, or use another tag=",
        )


def _values(settings: Mapping[str, object]) -> Knobs:
    try:
        return {name: knob_value(value) for name, value in settings.items()}
    except ValueError as error:
        raise ConfigError(str(error), "correct the plan") from error
