"""An OpenAI-compatible chat endpoint: one question, one answer, with limits on time, tries and money.

Where base_url is file:PATH, the endpoint is a job of the cluster: the file, which only its user can read, tells
address, key and model, and is read again whenever the server does not answer, as it may have moved. A key comes from an
environment variable or a file; it is written nowhere, and taken out of every message that is shown.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoresearch_hpc.agent_config import AgentConfig
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.quoting import quoted_line

if TYPE_CHECKING:  # imported where it is used: only a run with this agent pays for it
    import openai

__all__ = ["Answer", "Endpoint", "EndpointError", "require_answering", "require_usable"]

_log = logging.getLogger(__name__)
_BACK_OFF_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
_MAX_BACK_OFF_S = 60.0
_GREETING_S = 20.0
_CHARS_PER_TOKEN = 2.5  # fewer than any tokenizer needs for code: a bound, not an estimate
_FILE = "file:"
_NO_KEY = "none"  # for servers that want none


class EndpointError(Exception):
    """No answer was to be had; why, in one line without secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back. `problem` where it is an answer but none to work with: cut off, refused."""

    text: str
    problem: str = ""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Place:
    base_url: str
    key: str
    model: str


class Endpoint:
    """Asks; `tick` is called while it waits and may raise to end that."""

    def __init__(self, config: AgentConfig, tick: Callable[[], None] = lambda: None) -> None:
        self._config, self._tick = config, tick
        self._left_out: set[str] = set()  # parameters that this endpoint does not know
        self._client: tuple[_Place, openai.OpenAI] | None = None

    def at_most_usd(self, messages: list[dict[str, str]]) -> float:
        """A bound on the price of asking this once."""
        return self._usd(_tokens(*(message["content"] for message in messages)), self._config.max_tokens)

    def usd(self, answer: Answer) -> float:
        """What an answer has cost."""
        return self._usd(answer.prompt_tokens, answer.answer_tokens)

    def _usd(self, prompt_tokens: float, answer_tokens: float) -> float:
        config = self._config
        return (prompt_tokens * config.usd_per_million_in + answer_tokens * config.usd_per_million_out) / 1e6

    def ask(
        self, messages: list[dict[str, str]], timeout_s: float | None = None, again: Callable[[], str] = lambda: ""
    ) -> Answer:
        """The answer, after as many tries as it needs. Raises EndpointError when they or the time are used up.

        `again` is asked before a try that follows one which may have been charged; it says why there shall be none.
        """
        import openai

        limit_s = timeout_s or self._config.timeout_s * (1 + self._config.max_retries)
        deadline = time.monotonic() + limit_s
        away_until = time.monotonic() + 60 * self._config.server_wait_min  # what a job's server is given to come back
        tries = 0
        while True:
            left_s = deadline - time.monotonic()
            pause_s = _BACK_OFF_S[min(tries, len(_BACK_OFF_S) - 1)]
            place: _Place | None = None
            away = charged = False
            try:
                place = self._place(max(left_s, 0.0))
                return self._once(place, messages, min(self._config.timeout_s, max(left_s, 1.0)))
            except openai.BadRequestError as error:
                if not self._leave_out(error):
                    raise EndpointError(_words(error, place)) from None
                continue
            except openai.APIStatusError as error:
                problem = _words(error, place)
                away = error.status_code in (401, 404) and self._is_job
                if error.status_code not in (408, 409, 429) and error.status_code < 500 and not away:
                    raise EndpointError(problem) from None
                pause_s = max(pause_s, _retry_after(error))
            except openai.APITimeoutError as error:
                problem, charged = _words(error, place), True
            except openai.APIConnectionError as error:
                problem, charged, away = _words(error, place), True, self._is_job
            except ConfigError as error:  # the file with the key is gone
                raise EndpointError(str(error)) from None
            except (openai.OpenAIError, OSError, ValueError, TypeError, AttributeError) as error:  # of odd bodies, too
                problem, charged = _words(error, place), True
            tries += 1
            given_up = time.monotonic() > away_until if away else tries > self._config.max_retries
            if given_up or time.monotonic() + pause_s > deadline:
                raise EndpointError(f"{problem} ({tries} tries)")
            if charged and (reason := again()):
                raise EndpointError(f"{problem}; no further try: {reason}")
            _log.info("agent: %s; again in %.0f s", problem, pause_s)
            self._wait(pause_s)

    @property
    def _is_job(self) -> bool:
        return self._config.base_url.startswith(_FILE)

    def _once(self, place: _Place, messages: list[dict[str, str]], timeout_s: float) -> Answer:
        begun = time.monotonic()
        create: Any = self._connected(place).chat.completions.create  # typed for fixed parameters only
        answer = create(model=place.model, messages=messages, timeout=timeout_s, **self._parameters())
        choices = answer.choices
        if not choices:
            raise ValueError("the endpoint's answer has no choices")
        usage, message = getattr(answer, "usage", None), choices[0].message
        text = message.content or ""
        refusal = getattr(message, "refusal", None)
        problem = f"the model refused: {quoted_line(refusal, 200)}" if refusal else ""
        if choices[0].finish_reason == "length":
            problem = f"the answer was cut off at agent.max_tokens={self._config.max_tokens}"
        return Answer(
            text=text,
            problem=problem,
            prompt_tokens=usage.prompt_tokens if usage else _tokens(*(m["content"] for m in messages)),
            answer_tokens=usage.completion_tokens if usage else _tokens(text),
            seconds=time.monotonic() - begun,
        )

    def _parameters(self) -> Mapping[str, Any]:
        config = self._config
        given: dict[str, Any] = {"max_completion_tokens": config.max_tokens}
        if "max_completion_tokens" in self._left_out:  # its name on older servers
            given = {"max_tokens": config.max_tokens}
        if config.json_mode:
            given["response_format"] = {"type": "json_object"}
        if config.temperature is not None:
            given["temperature"] = config.temperature
        return {name: value for name, value in given.items() if name not in self._left_out}

    def _leave_out(self, error: "openai.BadRequestError") -> bool:
        """Whether the endpoint complains of a parameter that it can be spared; asked again it will be."""
        said = str(error).lower()
        for name in self._parameters():
            if name.lower() in said and name not in self._left_out:
                self._left_out.add(name)
                _log.info("agent: the endpoint does not know %s: going on without", name)
                return True
        return False

    def _connected(self, place: _Place) -> "openai.OpenAI":
        import openai

        if self._client is None or self._client[0] != place:
            self._client = place, openai.OpenAI(base_url=place.base_url, api_key=place.key, max_retries=0)
        return self._client[1]

    def _place(self, limit_s: float) -> _Place:
        config = self._config
        if not self._is_job:
            return _Place(config.base_url, _key(config) or _NO_KEY, config.model or "")
        path = Path(config.base_url.removeprefix(_FILE)).expanduser()
        deadline = time.monotonic() + min(60 * config.server_wait_min, limit_s)
        told = False
        while True:
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                return _Place(found["base_url"], found["api_key"], config.model or found["model"])
            except (OSError, ValueError, KeyError, TypeError):
                if time.monotonic() >= deadline:
                    raise EndpointError(
                        f"{path} tells of no server; start one: sbatch sbatch/llm_server.sbatch MODEL"
                    ) from None
            if not told:
                _log.info("agent: waiting for a server to be told of in %s", path)
                told = True
            self._wait(1.0)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._tick()
            time.sleep(min(0.2, left))


def require_usable(config: AgentConfig) -> None:
    """Raise ConfigError where nothing could be asked: no client library, no model, no key where one is needed."""
    try:
        import openai  # noqa: F401
    except ImportError:
        raise ConfigError("the package openai is not installed", "pip install 'autoresearch_hpc[llm]'") from None
    if config.base_url.startswith(_FILE):
        return
    if not config.model:
        raise ConfigError("no agent.model", f"name one that {config.base_url} offers: agent.model=NAME")
    if config.key_file is None and not os.environ.get(config.key_env) and "api.openai.com" in config.base_url:
        raise ConfigError(
            f"the environment has no {config.key_env}", "set it, or agent.key_file=, or another agent.base_url="
        )
    _key(config)


def require_answering(config: AgentConfig) -> None:
    """Raise ConfigError where the endpoint cannot be reached, or refuses the key. A job's server may come later."""
    import openai

    if config.base_url.startswith(_FILE):
        return
    key = _key(config) or _NO_KEY
    try:
        openai.OpenAI(base_url=config.base_url, api_key=key, max_retries=0, timeout=_GREETING_S).models.list()
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        source = f"agent.key_file={config.key_file}" if config.key_file else config.key_env
        words = quoted_line(str(error), 200).replace(key, "(the key)")
        raise ConfigError(f"{config.base_url} refuses the key: {words}", f"correct {source}") from error
    except openai.APIConnectionError as error:
        raise ConfigError(f"{config.base_url} cannot be reached: {error}", "correct agent.base_url") from error
    except (openai.OpenAIError, OSError, ValueError, TypeError, AttributeError) as error:
        _log.info("agent: %s does not list its models: %s", config.base_url, quoted_line(str(error), 200))


def _key(config: AgentConfig) -> str:
    if config.key_file is None:
        return os.environ.get(config.key_env, "")
    path = Path(config.key_file).expanduser()
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"agent.key_file={path} cannot be read: {error.strerror}", "correct it") from error


def _tokens(*texts: str) -> int:
    """No fewer than any tokenizer makes of these."""
    return math.ceil(sum(map(len, texts)) / _CHARS_PER_TOKEN)


def _words(error: Exception, place: _Place | None) -> str:
    words = quoted_line(str(error), 300) or type(error).__name__
    return words.replace(place.key, "(the key)") if place and place.key else words


def _retry_after(error: "openai.APIStatusError") -> float:
    try:
        return min(float(error.response.headers.get("retry-after", 0)), _MAX_BACK_OFF_S)
    except ValueError:
        return 0.0
