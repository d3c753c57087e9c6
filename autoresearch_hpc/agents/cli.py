"""Drafts from coding CLIs: each slot has a copy of the incumbent's files, a CLI that edits it, and a limit.

    rounds/03/agent/propose-00/before/     the files as they were     work/        as the CLI left them, with PROMPT.md
                               output.log  what it printed            answer.json  with it the slot counts as done

A CLI inherits the keys that its configuration names and no others, has a home of its own, and can write to its slot's
directory alone where the kernel lets a process be shut in.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from autoresearch_hpc import environment, knobs
from autoresearch_hpc.agent_config import Sandbox
from autoresearch_hpc.agents import prompts
from autoresearch_hpc.agents.authors import AuthorError, Drafts
from autoresearch_hpc.agents.background import side_by_side
from autoresearch_hpc.agents.drafts import Draft, Rejected
from autoresearch_hpc.agents.edits import difference
from autoresearch_hpc.agents.protocol import Brief
from autoresearch_hpc.agents.titles import changes
from autoresearch_hpc.errors import ConfigError, KnobError
from autoresearch_hpc.files import read_json, write_bytes_atomic, write_json_atomic, write_text_atomic
from autoresearch_hpc.quoting import quoted, quoted_line
from autoresearch_hpc.records import SearchState
from autoresearch_hpc.sandbox import usable

__all__ = ["CliAuthor", "require_usable"]

_IDEA, _PROMPT = "IDEA.md", "PROMPT.md"
_MAX_TITLE, _MAX_REASONING = 120, 1000
_TAIL_LINES = 15
_TERMINATE_S = 5.0
_TICK_S = 0.1
_MAX_BYTES = 1 << 20  # of an edited file
_MAX_LOG_BYTES = 1 << 20
_REPAIR = "REPAIR: your change of this directory's files could not be used. Correct it, in place. The problem:"


class CliAuthor:
    """Runs a coding CLI in each slot."""

    origin = "cli"
    revises = False

    def __init__(self, brief: Brief) -> None:
        assert brief.desk
        self._brief, self._desk, self._config, self._cli = brief, brief.desk, brief.config, brief.config.cli
        self._directions = tuple(brief.config.directions) or prompts.DIRECTIONS
        self._closed = threading.Event()

    def draft(self, state: SearchState, k: int, name: str) -> Drafts:
        directions = prompts.in_turn(self._directions, (state.index - 1) * k, k)
        slots = [partial(self._slot, state, name, slot, where) for slot, where in enumerate(directions)]
        return side_by_side(slots, self._cli.parallel)

    def has(self, state: SearchState, name: str) -> bool:
        return self._answer(state, name, 0).exists()

    def revise(self, state: SearchState, k: int, drafts: Sequence[Draft]) -> Drafts:
        raise AuthorError("a coding CLI does not revise its drafts")

    def repair(self, state: SearchState, rejected: Sequence[Rejected], name: str) -> Drafts:
        author, _, again = name.partition("-repair-")
        slots = [(item.draft.slot, item.problem) for item in rejected if item.draft and item.draft.slot is not None]
        calls = [partial(self._mend, state, author, slot, problem, again) for slot, problem in slots]
        return side_by_side(calls, self._cli.parallel)

    def close(self) -> None:
        self._closed.set()

    def _answer(self, state: SearchState, name: str, slot: int) -> Path:
        return self._desk.folder(state.index) / f"{name}-{slot:02d}" / "answer.json"

    def _slot(self, state: SearchState, name: str, slot: int, direction: str) -> Draft | Rejected:
        """A fresh copy, and what becomes of it."""
        answer = self._answer(state, name, slot)
        if not answer.exists():
            shutil.rmtree(answer.parent, ignore_errors=True)  # of a call that a controller did not see to its end
            for copy in ("before", "work"):
                _write(answer.parent / copy, state.source)
        prompt = prompts.for_cli(state, self._brief.space, self._config.prompt_chars, direction)
        return self._run(state, f"r{state.index:02d}/{name}-{slot:02d}", answer, slot, prompt)

    def _mend(self, state: SearchState, name: str, slot: int, problem: str, again: str) -> Draft | Rejected:
        """The same copy once more, with the problem in place of the prompt."""
        first = self._answer(state, name, slot)
        answer = first.with_name(f"answer-repair-{again}.json")
        quoted_problem = "\n".join(f"| {line}" for line in problem.splitlines())
        rules = prompts.for_cli(state, self._brief.space, self._config.prompt_chars, "the one that you took")
        id_ = f"r{state.index:02d}/{name}-{slot:02d}-repair-{again}"
        return self._run(state, id_, answer, slot, f"{_REPAIR}\n{quoted_problem}\n\n{rules}")

    def _run(self, state: SearchState, id_: str, answer: Path, slot: int, prompt: str) -> Draft | Rejected:
        folder, none = answer.parent, Draft(title=f"slot {slot}", slot=slot)
        told: dict[str, Any]
        if not answer.exists():
            if reason := self._desk.may_spend(id_, self._cli.usd_per_call):
                return Rejected(problem=reason)
            write_text_atomic(folder / "work" / _PROMPT, prompt)
            begun = time.monotonic()
            problem = self._call(folder, prompt)
            edited = {path: _read(folder / "work" / path) for path in state.source}
            idea = _read(folder / "work" / _IDEA) or ""
            told = {"problem": problem, "files": edited, "idea": idea, "seconds": round(time.monotonic() - begun, 3)}
            if self._closed.is_set():
                raise AuthorError("the run stops")
            write_json_atomic(answer, told)
        self._desk.spent(id_, self._cli.usd_per_call, 0, 0)
        told = read_json(answer)
        before = {path: _read(folder / "before" / path) or "" for path in state.source}
        patch = difference(before, {path: text for path, text in told["files"].items() if text is not None})
        missing = [path for path, text in told["files"].items() if text is None]
        if missing:
            return Rejected(problem=f"{', '.join(missing)} is gone, or no text, or larger than a megabyte", draft=none)
        if patch is None:
            return Rejected(problem=told["problem"] or f"none of {', '.join(state.source)} was changed", draft=none)
        title, reasoning = _idea(told["idea"])
        title = title or self._settings(before, told["files"]) or f"an edit by {Path(self._cli.command[0]).name}"
        return Draft(title=title, reasoning=reasoning, edits=(patch,), slot=slot)

    def _settings(self, before: Mapping[str, str], after: Mapping[str, str]) -> str:
        """What the edit says of itself, where the CLI says nothing: the knobs that it changed."""
        script = self._brief.script
        if script is None:
            return ""
        with contextlib.suppress(KnobError):  # a text that does not parse is told of by the checks
            return changes(knobs.read(after[script]), knobs.read(before[script]))
        return ""

    def _call(self, folder: Path, prompt: str) -> str:
        """Run the CLI to its end, or to its limit. What went wrong, in words."""
        home, scratch, work = folder / "home", folder / "tmp", folder / "work"
        for own in (home, scratch):
            own.mkdir(exist_ok=True)
        model, base_url = self._config.model or "", self._config.base_url
        given = {"prompt_file": str(work / _PROMPT), "model": model, "base_url": base_url, "tmp": str(scratch)}
        given["prompt"] = prompt  # last: nothing in it stands in for anything
        words = [_filled(word, given) for word in self._cli.command]
        env = {**environment.for_cli(self._cli.keys), **_private(home, scratch)}
        env |= {name: _filled(value, given) for name, value in self._cli.env.items()}
        argv = [sys.executable, "-P", "-m", "autoresearch_hpc.shut_in", "--mode", self._cli.sandbox.value]
        argv += [word for path in self._readable(words[0], env) for word in ("--readable", str(path))]
        argv += [word for path in (work, home, scratch) for word in ("--writable", str(path))] + ["--", *words]
        log = folder / "output.log"
        with log.open("ab") as output, (work / _PROMPT).open("rb") as text:
            process = subprocess.Popen(
                argv,
                stdin=text if self._cli.stdin else subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=work,
                env=env,
                start_new_session=True,
            )
            status = self._wait(process)
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(scratch, ignore_errors=True)
        said = self._censored(log)
        if status is None:
            return f"it was ended at its limit of agent.cli.limit_s={self._cli.limit_s:g}"
        return f"it ended with status {status}: {quoted(said, max_lines=_TAIL_LINES)}" if status else ""

    def _wait(self, process: "subprocess.Popen[bytes]") -> int | None:
        """Its exit status; None where it was ended."""
        deadline = time.monotonic() + self._cli.limit_s
        while time.monotonic() < deadline and not self._closed.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_TICK_S)
                _signal(process, signal.SIGKILL)  # what it may have left behind
                return process.returncode
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_TERMINATE_S)
        _signal(process, signal.SIGKILL)
        process.wait()
        return None

    def _readable(self, program: str, env: Mapping[str, str]) -> list[Path]:
        """Where the program itself lies, and what the configuration names."""
        found = [Path(path).expanduser() for path in self._cli.readable]
        if where := shutil.which(program, path=env.get("PATH")):
            for path in {Path(where), Path(where).resolve()}:
                found.append(path.parent.parent if path.parent.name in ("bin", ".bin") else path.parent)
        return [path for path in found if path not in (Path.home(), *Path.home().parents)]

    def _censored(self, log: Path) -> str:
        """The end of what it printed, without its keys; the file keeps no more than that."""
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _MAX_LOG_BYTES))
            content = file.read()
        for name in self._cli.keys:
            if key := os.environ.get(name):
                content = content.replace(key.encode(), b"(the key)")
        write_bytes_atomic(log, content)
        return content.decode("utf-8", errors="replace")


def require_usable(brief: Brief) -> None:
    """Raise ConfigError where there is no command, or it is not installed, or a key is not set."""
    cli = brief.config.cli
    if not cli.command:
        raise ConfigError("agent=cli has no agent.cli.command", "choose agent=aider, codex, claude_code or openhands")
    if not shutil.which(cli.command[0]):
        raise ConfigError(f"{cli.command[0]} is not on PATH", "install it, or correct agent.cli.command")
    if cli.sandbox is Sandbox.require and not usable(cli.sandbox.value):
        raise ConfigError(
            "agent.cli.sandbox=require, but this kernel has no Landlock",
            "set agent.cli.sandbox=none, and the CLI's own sandbox in agent.cli.command",
        )
    if missing := [name for name in cli.keys if not os.environ.get(name)]:
        raise ConfigError(f"the environment has no {', '.join(missing)}", "set it, or correct agent.cli.keys")
    if brief.config.model is None and any("{model}" in word for word in cli.command):
        raise ConfigError("no agent.model", "name the model that the CLI shall use: agent.model=NAME")


def _private(home: Path, scratch: Path) -> dict[str, str]:
    """Where a CLI keeps what is its own; and Python finds this package, wherever that lies."""
    return {
        "HOME": str(home),
        "TMPDIR": str(scratch),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _filled(word: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        word = word.replace("{" + name + "}", value)
    return word


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode("utf-8"))


def _read(path: Path) -> str | None:
    try:
        if path.is_symlink() or path.stat().st_size > _MAX_BYTES:
            return None
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _idea(text: str) -> tuple[str, str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "", ""
    return quoted_line(lines[0].lstrip("# "), _MAX_TITLE), quoted_line(" ".join(lines[1:]), _MAX_REASONING)


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
