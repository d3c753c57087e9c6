"""Drafts from a language model: one request for a round, or one for each slot with a direction of its own."""

from collections.abc import Sequence
from functools import partial

from autoresearch_hpc.agent_config import Diversity
from autoresearch_hpc.agents import prompts
from autoresearch_hpc.agents.answers import parse
from autoresearch_hpc.agents.authors import AuthorError, Drafts
from autoresearch_hpc.agents.background import side_by_side
from autoresearch_hpc.agents.calls import Calls
from autoresearch_hpc.agents.drafts import Draft, Rejected
from autoresearch_hpc.agents.protocol import Brief
from autoresearch_hpc.records import SearchState

__all__ = ["LlmAuthor"]

_AT_ONCE = 8  # requests


class LlmAuthor:
    """Asks an OpenAI-compatible endpoint."""

    origin = "llm"
    revises = True

    def __init__(self, brief: Brief) -> None:
        assert brief.desk
        self._config, self._space = brief.config, brief.space
        self._calls = Calls(brief.config, brief.desk, self._tick)
        self._directions = tuple(brief.config.directions) or prompts.DIRECTIONS
        self._closed = False

    def draft(self, state: SearchState, k: int, name: str) -> Drafts:
        told = self._told(state)
        if self._config.diversity is Diversity.one:
            return self._ask(state, name, told + prompts.wanted(k + self._config.spare))
        directions = prompts.in_turn(self._directions, (state.index - 1) * k, k + self._config.spare)
        requests = [(f"{name}-{i:02d}", told + prompts.wanted(1, where)) for i, where in enumerate(directions)]
        return self._each(state, requests)

    def has(self, state: SearchState, name: str) -> bool:
        return self._calls.has(state.index, name if self._config.diversity is Diversity.one else f"{name}-00")

    def revise(self, state: SearchState, k: int, drafts: Sequence[Draft]) -> Drafts:
        request = self._told(state) + prompts.revision(k, drafts)
        return self._ask(state, "revise", request, drafts, timeout_s=self._config.revise_s)

    def repair(self, state: SearchState, rejected: Sequence[Rejected], name: str) -> Drafts:
        return self._ask(state, name, self._told(state) + prompts.rejections(rejected))

    def close(self) -> None:
        self._closed = True

    def _tick(self) -> None:
        if self._closed:
            raise AuthorError("the run stops")

    def _told(self, state: SearchState) -> str:
        return prompts.brief(state, self._space, self._config.prompt_chars)

    def _each(self, state: SearchState, requests: Sequence[tuple[str, str]]) -> Drafts:
        """One request for each; those that fail are told as rejected, unless all do."""
        answers = side_by_side([partial(self._or_problem, state, *request) for request in requests], _AT_ONCE)
        found = [draft for drafts in answers if not isinstance(drafts, AuthorError) for draft in drafts]
        failed = [drafts for drafts in answers if isinstance(drafts, AuthorError)]
        if failed and not found:
            raise failed[0]
        return found

    def _or_problem(self, state: SearchState, name: str, request: str) -> Drafts | AuthorError:
        try:
            return self._ask(state, name, request)
        except AuthorError as error:
            return error

    def _ask(
        self,
        state: SearchState,
        name: str,
        request: str,
        drafts: Sequence[Draft] = (),
        timeout_s: float | None = None,
    ) -> Drafts:
        answer = self._calls.ask(state.index, name, prompts.SYSTEM, request, timeout_s)
        found = parse(answer.text, next(iter(state.source)), drafts)
        if answer.problem and not any(isinstance(draft, Draft) for draft in found):
            return [Rejected(problem=answer.problem)]
        return found
