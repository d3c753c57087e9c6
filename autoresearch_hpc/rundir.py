"""A run's directory: its name, its making, whether it may be resumed, the log in it."""

import glob
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from autoresearch_hpc.config import Config
from autoresearch_hpc.errors import ConfigError, StorageError
from autoresearch_hpc.files import write_text_atomic
from autoresearch_hpc.layout import RunLayout

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}")
_MAX_NAMESAKES = 100
# What may change from one controller of a run to the next: how it is done, not what is searched.
_FREE: tuple[str, ...] = (
    "budget",
    "cluster",
    "runs_dir",
    "repo",
    "plan.max_rounds",
    "corpus.prepare",
    "task.dirty",
    "agent.cli",
)
_FREE += tuple(
    f"agent.{name}"
    for name in (
        *("base_url", "model", "key_env", "key_file", "temperature", "max_tokens", "json_mode", "timeout_s"),
        *("max_retries", "server_wait_min", "usd_per_million", "prompt_chars", "spare", "repairs"),
        *("prefetch", "revise_s", "checks_s"),
    )
)


def choose_tag(config: Config, runs_dir: Path) -> str:
    """The configured tag, or a new one. Raises ConfigError for one that cannot name a branch."""
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


def check_writable(layout: RunLayout) -> None:
    """Raise ConfigError where the run's directory could not be made; makes nothing."""
    try:
        nearest = next(path for path in (layout.root, *layout.root.parents) if path.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(f"{nearest} is not a directory")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write in {nearest}")
    except OSError as error:
        raise _not_writable(layout, error) from error


def make_directory(layout: RunLayout, exclusive: bool) -> RunLayout:
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
    except StorageError:
        raise
    except OSError as error:
        raise _not_writable(layout, error) from error


def require_same(config: Config, layout: RunLayout) -> None:
    """Raise ConfigError naming the first key that would make a resumed run another search."""
    try:
        before = OmegaConf.to_container(OmegaConf.load(layout.config))
    except OSError as error:
        raise ConfigError(f"{layout.config} cannot be read: {error.strerror}", "use another tag=") from error
    now = OmegaConf.to_container(OmegaConf.create(as_yaml(config)))
    difference = next((d for d in _differences(before, now, "") if not d[0].startswith(_FREE)), None)
    if difference:
        key, old, new = difference
        raise ConfigError(
            f"run {layout.root.name} exists with {key}={old}, not {new}", "use another tag=, or the old value to resume"
        )


def as_yaml(config: Config) -> str:
    """The whole configuration, as config.yaml holds it."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


@contextmanager
def log_file(layout: RunLayout) -> Iterator[None]:
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


def _not_writable(layout: RunLayout, error: OSError) -> ConfigError:
    reason = error.strerror or error
    return ConfigError(f"the run's directory {layout.root} cannot be written: {reason}", "set runs_dir=")


def _differences(before: Any, now: Any, prefix: str) -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = list(dict.fromkeys([*now, *before]))
        inner = [_differences(before.get(key), now.get(key), f"{prefix}.{key}" if prefix else str(key)) for key in keys]
        return [difference for differences in inner for difference in differences]
    return [] if before == now or prefix == "tag" else [(prefix, before, now)]
