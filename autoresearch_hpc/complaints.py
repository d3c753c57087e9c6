"""Hydra's, OmegaConf's and YAML's many-line complaints about a configuration, as one line with a remedy."""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

import yaml  # type: ignore[import-untyped]

from autoresearch_hpc.config import Config
from autoresearch_hpc.errors import ConfigError


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
    return ConfigError(f"unknown key {wrong}", did_you_mean(wrong))


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


def did_you_mean(wrong: str) -> str:
    """The remedy for a key that does not exist."""
    wrong, known = re.sub(r"\[\d+\]", "", wrong), list(_keys(Config, ""))
    siblings = [key for key in known if key.rpartition(".")[0] == wrong.rpartition(".")[0]]
    guess = difflib.get_close_matches(wrong, siblings, 1, 0.8) or difflib.get_close_matches(wrong, known, 1, 0.7)
    return f"did you mean {guess[0]}?" if guess else "docs/configuration.md lists all keys"


def first_unknown(composed: Any) -> str | None:
    """A key that the schema lacks, dotted: Hydra's plus adds them anywhere without a word."""
    return next(_unknown(composed, Config, ""), None)


def _unknown(value: Any, kind: Any, path: str) -> Iterator[str]:
    inner = _item(kind)
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown(item, inner, f"{path}[{index}]")
    if not isinstance(value, dict):
        return
    hints = get_type_hints(kind) if is_dataclass(kind) else None
    for key, item in value.items():
        name = f"{path}.{key}" if path else str(key)
        if hints is not None and key not in hints:
            yield name
        else:
            yield from _unknown(item, hints[key] if hints else inner, name)


def _item(kind: Any) -> Any:
    """What a list, a dict or an optional of a schema class holds: that class, else None."""
    return next((inner for inner in get_args(kind) if is_dataclass(inner)), None)


def _keys(kind: Any, prefix: str) -> Iterator[str]:
    """Dotted keys of a schema class; those of lists' items also bare, as OmegaConf names them."""
    for name, hint in get_type_hints(kind).items():
        yield f"{prefix}{name}"
        inner = hint if is_dataclass(hint) else _item(hint)
        if inner:
            yield from _keys(inner, f"{prefix}{name}.")
            if get_origin(hint) is list:
                yield from get_type_hints(inner)
