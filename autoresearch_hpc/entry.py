"""What every command line shares: composing conf/, one-line errors, exit codes, logging.

A conf/ directory where the command is started is searched too, so that a repository's own plans and cluster
profiles are found; Hydra's --config-dir adds one more.
"""

import functools
import importlib.metadata
import logging
from collections.abc import Sequence
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from autoresearch_hpc import config
from autoresearch_hpc.agent_config import ENTRY_POINTS
from autoresearch_hpc.bundle import bundle_dir
from autoresearch_hpc.complaints import config_error, did_you_mean, first_unknown
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.exits import run as run

COMPLAINTS = (HydraException, OmegaConfBaseException, yaml.YAMLError)  # about a configuration


class _WorkingDirectoryConf(SearchPathPlugin):
    """Adds ./conf to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        own = Path.cwd() / "conf"
        if own.is_dir() and own != conf_dir():
            search_path.append(provider="autoresearch_hpc-cwd", path=f"file://{own}")


def conf_dir() -> Path:
    """The package's own conf/."""
    return bundle_dir() / "conf"


@functools.cache
def register() -> None:
    """Make the schema, ./conf and other packages' agents known to Hydra, once; before anything is composed."""
    store = ConfigStore.instance()
    store.store(name="schema", node=config.Config)
    for name in importlib.metadata.entry_points(group=ENTRY_POINTS).names:
        store.store(group="agent", name=name, node={"name": name})
    Plugins.instance().register(_WorkingDirectoryConf)


def usage() -> str:
    """What --help prints. Hydra takes a second for it, most of that to copy what is not shown."""
    template = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))["hydra"]["help"]["template"]
    groups: dict[str, set[str]] = {"agent": set(importlib.metadata.entry_points(group=ENTRY_POINTS).names)}
    for folder in (conf_dir(), Path.cwd() / "conf"):
        for path in folder.glob("*/*.yaml"):
            groups.setdefault(path.parent.name, set()).add(path.stem)
    lines = [f"{group}: {', '.join(sorted(groups[group]))}\n" for group in sorted(groups)]
    return str(template).replace("$APP_CONFIG_GROUPS", "".join(lines))


def compose(overrides: Sequence[str]) -> DictConfig:
    """The configuration of these command-line overrides. Raises ConfigError in one line."""
    register()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra_compose("config", overrides=list(overrides))
    except (*COMPLAINTS, ValueError) as error:  # the latter from files that are no UTF-8 and from GROUP=null
        raise config_error(error) from error


def load(composed: DictConfig) -> config.Config:
    """The composed configuration as plain objects. Raises ConfigError on what is missing or impossible."""
    try:
        return _load(composed)
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from error
        raise ConfigError(str(error).splitlines()[0], "see docs/configuration.md") from error


def _load(composed: DictConfig) -> config.Config:
    if unknown := first_unknown(OmegaConf.to_container(composed)):
        raise ConfigError(f"unknown key {unknown}", did_you_mean(unknown))
    missing = sorted(OmegaConf.missing_keys(composed))
    if "plan.name" in missing:
        raise ConfigError("no round plan", "add +round=NAME, for a start +round=quickstart")
    if missing:
        raise ConfigError(f"no value for {', '.join(missing)}", "set it on the command line: KEY=VALUE")
    plain = OmegaConf.to_object(composed)
    assert isinstance(plain, config.Config)
    return plain


def setup_logging() -> None:
    """Plain log lines on standard error, from INFO."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger("autoresearch_hpc")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False
