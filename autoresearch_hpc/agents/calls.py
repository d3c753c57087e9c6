"""Calls of an endpoint that are kept: the whole prompt and the whole answer of each lie in the run's directory.

rounds/03/agent/propose.prompt.md      what was asked
                propose.answer.txt     what came back, word for word
                propose.json           when, how long, tokens, dollars; with it the answer counts as given
                propose.error.txt      why nothing came back
"""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from autoresearch_hpc.agent_config import AgentConfig
from autoresearch_hpc.agents.authors import AuthorError
from autoresearch_hpc.agents.endpoint import Answer, Endpoint, EndpointError
from autoresearch_hpc.agents.protocol import Desk
from autoresearch_hpc.files import read_json, write_json_atomic, write_text_atomic

__all__ = ["Calls"]


class Calls:
    """Asks an endpoint, each question once a round."""

    def __init__(self, config: AgentConfig, desk: Desk, tick: Callable[[], None]) -> None:
        self._config, self._desk = config, desk
        self._endpoint = Endpoint(config, tick)

    def has(self, round_: int, name: str) -> bool:
        return self._path(round_, name, "json").exists()

    def ask(self, round_: int, name: str, system: str, user: str, timeout_s: float | None = None) -> Answer:
        """The answer to the question of this name, from its file where it was asked before.

        Raises AuthorError where none is to be had, the budget being one reason.
        """
        id_ = f"r{round_:02d}/{name}"
        if self.has(round_, name):
            kept = read_json(self._path(round_, name, "json"))
            text = self._path(round_, name, "answer.txt").read_bytes().decode("utf-8")
            answer = Answer(
                text=text,
                problem=kept["problem"],
                prompt_tokens=kept["prompt_tokens"],
                answer_tokens=kept["answer_tokens"],
            )
            self._desk.spent(id_, kept["usd"], answer.prompt_tokens, answer.answer_tokens)
            return answer
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        spend = partial(self._desk.may_spend, id_, self._endpoint.at_most_usd(messages))
        if reason := spend():
            raise AuthorError(reason)
        write_text_atomic(self._path(round_, name, "prompt.md"), f"{system}\n{user}")
        try:
            answer = self._endpoint.ask(messages, timeout_s, spend)
        except EndpointError as error:
            write_text_atomic(self._path(round_, name, "error.txt"), f"{error}\n")
            raise AuthorError(str(error)) from error
        self._keep(round_, name, answer)
        self._desk.spent(id_, self._endpoint.usd(answer), answer.prompt_tokens, answer.answer_tokens)
        return answer

    def _keep(self, round_: int, name: str, answer: Answer) -> None:
        write_text_atomic(self._path(round_, name, "answer.txt"), answer.text)
        told = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "base_url": self._config.base_url,
            "model": self._config.model,
            "problem": answer.problem,
            "prompt_tokens": answer.prompt_tokens,
            "answer_tokens": answer.answer_tokens,
            "seconds": round(answer.seconds, 3),
            "usd": self._endpoint.usd(answer),
        }
        write_json_atomic(self._path(round_, name, "json"), told)

    def _path(self, round_: int, name: str, kind: str) -> Path:
        return self._desk.folder(round_) / f"{name}.{kind}"
