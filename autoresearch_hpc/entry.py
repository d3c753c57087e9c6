"""What every command line shares: composing conf/, one-line errors, exit codes, logging.

A conf/ directory where the command is started is searched too, so that a repository's own plans and cluster
profiles are found; Hydra's --config-dir adds one more.
"""

import difflib
import functools
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from autoresearch_hpc import config
from autoresearch_hpc.bundle import bundle_dir
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
    """Make the schema and ./conf known to Hydra, once; before anything is composed."""
    config.register()
    Plugins.instance().register(_WorkingDirectoryConf)


def compose(overrides: Sequence[str]) -> DictConfig:
    """The configuration of these command-line overrides. Raises ConfigError in one line."""
    register()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return hydra_compose("config", overrides=list(overrides))
    except (*COMPLAINTS, ValueError) as error:  # the latter from files that are no UTF-8 and from GROUP=null
        raise config_error(error) from error


def config_error(error: BaseException) -> ConfigError:
    """Hydra's, OmegaConf's and YAML's many-line complaints as one line with a guess at what was meant."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ConfigError):
            return cause
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return ConfigError(f"{mark.name}:{mark.line + 1}: {error.problem}", "correct the YAML")
    if isinstance(error, UnicodeDecodeError):
        return ConfigError(f"a configuration file is no UTF-8 text: {error}", "save it as UTF-8")
    lines = [line.strip() for cause in causes for line in str(cause).splitlines() if line.strip()]
    text = " ".join(lines)
    for pattern, explain in _EXPLANATIONS:
        if match := re.search(pattern, text):
            return explain(match, text)
    first = next((line for line in reversed(lines[:_NUM_USEFUL]) if _is_cause(line)), lines[0] if lines else text)
    key = _full_key(text)
    return ConfigError(f"{key}: {first}" if key and key not in first else first, "see docs/configuration.md")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


_NUM_USEFUL = 3
_NOISE = re.compile(
    r"full_key:|reference_type=|object_type=|See https:|.*raised while composing config:$|Error merging"
)


def _is_cause(line: str) -> bool:
    return not _NOISE.match(line)


def _full_key(text: str) -> str:
    match = re.search(r"full_key: (\S+)", text)
    return match[1] if match else ""


def _not_chosen(match: re.Match[str], text: str) -> ConfigError:
    return ConfigError(f"{match[1]} is not chosen yet", f"add it with a plus: +{match[1]}=NAME")


def _chosen_twice(match: re.Match[str], text: str) -> ConfigError:
    return ConfigError(f"{match[1]} is chosen twice", "give it once, and without a plus where it has a default")


def _sweep(match: re.Match[str], text: str) -> ConfigError:
    return ConfigError(
        f"{match[1]} has several values", "for one run each start with -m; a comma within a value needs \\,"
    )


def _no_equals(match: re.Match[str], text: str) -> ConfigError:
    return ConfigError(f"{match[1]!r} sets nothing", "write KEY=VALUE, or +round=NAME for a plan")


def _no_such_name(match: re.Match[str], text: str) -> ConfigError:
    group, name = match[1], match[2]
    if group == "launcher":
        return ConfigError(f"no launcher named {name!r}", "pip install 'autoresearch_hpc[launcher]' for submitit_slurm")
    options = re.search(r"Available options in '\S+': (.*?)(?: Config search path|$)", text)
    names = options[1].split() if options else []
    plus = "+" if group == "round" else ""
    if not name:
        return ConfigError(f"{plus}{group}= names nothing", f"there are: {', '.join(names)}")
    guess = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {plus}{group}={guess[0]}?" if guess else f"there are: {', '.join(names)}"
    return ConfigError(f"no {group} named {name!r}", hint)


def _unknown_key(match: re.Match[str], text: str) -> ConfigError:
    wrong = _full_key(text) or match[1]
    file = re.search(r"In '(\S+)':", text)
    if wrong in ("round", "task", "cluster", "space", "agent") and file and file[1].startswith(f"{wrong}/"):
        return ConfigError(
            f"conf/{file[1]}.yaml is read as a part of {wrong!r}", "begin it with the line: # @package _global_"
        )
    parent = wrong.rpartition(".")[0]
    if parent == "space.knobs":
        return _no_new_domain(match, text)
    if parent in ("task.env", "plan.base", "agent.options", "cluster.sbatch"):
        return ConfigError(f"{wrong} is not set yet", f"add it with a plus: +{wrong}=...")
    return ConfigError(f"unknown key {wrong}", config.did_you_mean(wrong))


def _wrong_type(match: re.Match[str], text: str) -> ConfigError:
    return ConfigError(f"{_full_key(text) or 'a key'}={match[1]} is not of type {match[2].lower()}", "correct it")


def _wrong_word(match: re.Match[str], text: str) -> ConfigError:
    return ConfigError(f"{_full_key(text) or 'a key'}={match[1]}", f"expected one of {match[2]}")


def _no_new_domain(match: re.Match[str], text: str) -> ConfigError:
    return ConfigError(
        "a new knob of the space cannot come from the command line", "write it into a file, conf/space/NAME"
    )


def _no_deletion(match: re.Match[str], text: str) -> ConfigError:
    return ConfigError(f"{_full_key(text)} cannot be deleted", "set it to null or to another value")


# What Hydra and OmegaConf say, all of it on one line, and how to say it for people.
_EXPLANATIONS: tuple[tuple[str, Callable[[re.Match[str], str], ConfigError]], ...] = (
    (r"Could not override '(\S+?)'\. No match in the defaults list", _not_chosen),
    (r"Multiple values for (\S+?)\.", _chosen_twice),
    (r"(\S+) appears more than once in the final defaults list", _chosen_twice),
    (r"Ambiguous value for argument '(.*?)='?", _sweep),
    (r"Error parsing override '(.*?)' missing EQUAL", _no_equals),
    (r"Could not find '(?:\S*/)?([^/']+)/([^/']*)'", _no_such_name),
    (r"Key '(\S+?)' (?:is )?not in (?:struct|'\S+')", _unknown_key),
    (r"Value '(.*?)'.* of type '?.*?'? could not be converted to (\S+)", _wrong_type),
    (r"Invalid value '(.*?)', expected one of (\[.*?\])", _wrong_word),
    (r"Invalid type assigned: dict is not a subclass of KnobDomain", _no_new_domain),
    (r"does not support deletion", _no_deletion),
)


def setup_logging() -> None:
    """Plain log lines on standard error, from INFO."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger("autoresearch_hpc")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    root.propagate = False
