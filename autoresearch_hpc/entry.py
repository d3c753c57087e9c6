"""What every command line shares: composing conf/, one-line errors, exit codes, logging.

A conf/ directory where the command is started is searched too, so that a repository's own plans and cluster
profiles are found; Hydra's --config-dir adds one more.
"""

import difflib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from autoresearch_hpc import config
from autoresearch_hpc.bundle import bundle_dir
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.exits import run as run


class _WorkingDirectoryConf(SearchPathPlugin):
    """Adds ./conf to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        own = Path.cwd() / "conf"
        if own.is_dir() and own != conf_dir():
            search_path.append(provider="autoresearch_hpc-cwd", path=f"file://{own}")


def conf_dir() -> Path:
    """The package's own conf/."""
    return bundle_dir() / "conf"


def register() -> None:
    """Make the schema and ./conf known to Hydra; before anything is composed."""
    config.register()
    Plugins.instance().register(_WorkingDirectoryConf)


def compose(overrides: Sequence[str]) -> DictConfig:
    """The configuration of these command-line overrides. Raises ConfigError in one line."""
    register()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra_compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise config_error(error) from error


def config_error(error: BaseException) -> ConfigError:
    """Hydra's and OmegaConf's many-line complaints as one line with a guess at what was meant."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__
    for cause in causes:
        if isinstance(cause, ConfigError):
            return cause
    text = " ".join(line.strip() for cause in causes for line in str(cause).splitlines() if line.strip())
    if match := re.search(r"Could not override '(\S+?)'\. No match in the defaults list", text):
        return ConfigError(f"{match[1]} is not chosen yet", f"add it with a plus: +{match[1]}=NAME")
    if match := re.search(r"Could not find '(?:\S*/)?([^/']+)/([^/']+)'", text):
        names = _group(match[1])
        guess = difflib.get_close_matches(match[2], names, 1)
        plus = "+" if match[1] == "round" else ""
        hint = f"did you mean {plus}{match[1]}={guess[0]}?" if guess else f"there are: {', '.join(names)}"
        return ConfigError(f"no {match[1]} named {match[2]!r}", hint)
    if match := re.search(r"Key '(\S+?)' (?:is )?not in (?:struct|'\S+')", text):
        full = re.search(r"full_key: (\S+)", text)
        wrong = full[1] if full else match[1]
        return ConfigError(f"unknown key {wrong}", _did_you_mean(wrong))
    if match := re.search(r"Value '(.*?)'.* of type '?.*?'? could not be converted to (\S+)", text):
        full = re.search(r"full_key: (\S+)", text)
        return ConfigError(f"{full[1] if full else 'a key'}={match[1]} is not of type {match[2].lower()}", "correct it")
    if match := re.search(r"Invalid value '(.*?)', expected one of (\[.*?\])", text):
        full = re.search(r"full_key: (\S+)", text)
        return ConfigError(f"{full[1] if full else 'a key'}={match[1]}", f"expected one of {match[2]}")
    return ConfigError(str(causes[-1]).splitlines()[0].strip(), "see docs/configuration.md")


def _did_you_mean(wrong: str) -> str:
    keys = list(_keys(OmegaConf.to_container(OmegaConf.structured(config.Config)), ""))
    guess = difflib.get_close_matches(wrong, keys, 1, 0.5)
    return f"did you mean {guess[0]}?" if guess else "docs/configuration.md lists all keys"


def _keys(node: Any, prefix: str) -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")


def _group(group: str) -> list[str]:
    folders = (conf_dir() / group, Path.cwd() / "conf" / group)
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def setup_logging() -> None:
    """Plain log lines on standard error, from INFO."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger("autoresearch_hpc")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False
