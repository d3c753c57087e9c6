"""What writes drafts: `LlmAuthor` asks an endpoint, `cli.CliAuthor` runs coding CLIs.

Each call of an author has a name that is the same whenever the round is asked for, and its answer is kept under that
name before it is used: who resumes reads it instead of asking again.
"""

from collections.abc import Sequence
from typing import Protocol

from autoresearch_hpc.agents.drafts import Draft, Rejected
from autoresearch_hpc.records import SearchState

__all__ = ["Author", "AuthorError", "Drafts"]

Drafts = Sequence[Draft | Rejected]


class AuthorError(Exception):
    """Nothing came back; why, in one line."""


class Author(Protocol):
    """Every method may take long, is called from any thread, and raises AuthorError where nothing came of it."""

    origin: str
    revises: bool  # whether it can look again at its drafts when results are in

    def draft(self, state: SearchState, k: int, name: str) -> Drafts:
        """Ideas for k slots of round `state.index`; there may be more."""
        ...

    def has(self, state: SearchState, name: str) -> bool:
        """Whether the answer of that name is there already, of an earlier controller."""
        ...

    def revise(self, state: SearchState, k: int, drafts: Sequence[Draft]) -> Drafts:
        """The drafts, looked at again."""
        ...

    def repair(self, state: SearchState, rejected: Sequence[Rejected], name: str) -> Drafts:
        """Others in place of what was rejected."""
        ...

    def close(self) -> None:
        """Let calls that are under way end soon."""
        ...
