"""Drafts: what an author, a language model or a coding CLI, wants to try, before it is known whether it can be done."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from autoresearch_hpc import knobs
from autoresearch_hpc.agents.edits import Edit, EditError, WholeFile, apply, difference
from autoresearch_hpc.errors import KnobError
from autoresearch_hpc.fingerprint import fingerprint
from autoresearch_hpc.records import Knobs, Proposal

__all__ = ["Attempt", "Draft", "Rejected", "attempt", "movable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An edit by name: `fixes` is the failed candidate that it mends, else it starts from the incumbent."""

    title: str
    reasoning: str = ""
    edits: tuple[Edit, ...] = ()
    knobs: Knobs = field(default_factory=dict)
    fixes: str | None = None
    slot: int | None = None  # of the author that wrote it, where each has one of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A draft, or a part of an answer that is none, and why it cannot be tried."""

    problem: str
    draft: Draft | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A draft made: the proposal, the editable files before and after, and what the files mean."""

    draft: Draft
    proposal: Proposal
    before: Mapping[str, str]
    after: Mapping[str, str]
    fingerprint: str


def movable(draft: Draft, before: Mapping[str, str]) -> Draft:
    """The draft with whole files told as differences from `before`, so that it can be made on a later incumbent."""
    if not any(isinstance(edit, WholeFile) for edit in draft.edits):
        return draft
    try:
        patch = difference(before, apply(draft.edits, before))
    except EditError:
        return draft  # it cannot be made at all, which its author shall hear
    return replace(draft, edits=(patch,) if patch else ())


def attempt(draft: Draft, before: Mapping[str, str], script: str | None, origin: str, beside: Knobs) -> Attempt:
    """Make the draft's edits. `beside` are the settings that travel beside a script, where they do.

    Raises EditError with the reason where they cannot be made or change nothing.
    """
    edited = apply(draft.edits, before)
    after, settings = dict(edited), {**beside, **draft.knobs}
    if script is not None:
        settings = beside = {}
        try:
            after[script] = knobs.rewrite(edited[script], draft.knobs, script)
        except KnobError as error:
            raise EditError(str(error)) from error
    files = {path: text for path, text in edited.items() if text != before[path]}
    if after == before and settings == beside:
        raise EditError("it changes nothing")
    proposal = Proposal(
        title=draft.title,
        knobs=draft.knobs,
        files=files,
        on=draft.fixes,
        origin=origin,
        reasoning=draft.reasoning,
    )
    return Attempt(draft=draft, proposal=proposal, before=before, after=after, fingerprint=fingerprint(after, settings))
