"""The agents that edit code: an author drafts, every draft is tried out without a GPU, a sampler fills what is left.

A round never fails because an author did. A draft that cannot be used gets its error back, `agent.repairs` times at
most; then the round's slots go to spare drafts, and to a sampler of the space (without one, of the script's own
numbers).

While a round trains the next one is drafted. When the results are in, the author may look at its drafts once more,
`agent.revise_s` at most; else those that still apply to the incumbent go out.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from autoresearch_hpc import knobs
from autoresearch_hpc.agent_config import Prefetch
from autoresearch_hpc.agents.authors import Author, AuthorError, Drafts
from autoresearch_hpc.agents.background import Task
from autoresearch_hpc.agents.drafts import Attempt, Draft, Rejected, attempt, movable
from autoresearch_hpc.agents.edits import EditError
from autoresearch_hpc.agents.protocol import Agent, Brief
from autoresearch_hpc.errors import InterruptedRun, KnobError
from autoresearch_hpc.files import read_json, write_json_atomic
from autoresearch_hpc.fingerprint import fingerprint
from autoresearch_hpc.records import Knobs, Outcome, Proposal, SearchState, Status
from autoresearch_hpc.space import Space, around

__all__ = ["EditingAgent"]

_log = logging.getLogger(__name__)
_NO_FAULT = (Status.LOST, Status.CANCELLED)  # say nothing about the edit


class EditingAgent:
    """Gives an author `share` of the slots and a sampler the others; both hear of everything.

    `sampler` makes the sampler of a space.
    """

    def __init__(self, brief: Brief, author: Author, sampler: Callable[[Space], Agent], share: float = 1.0) -> None:
        assert brief.desk
        self._brief, self._desk, self._config = brief, brief.desk, brief.config
        self._author, self._share, self._make_sampler = author, share, sampler
        self._sampler = sampler(brief.space) if brief.space else None
        self._outcomes: list[Outcome] = []
        self._ahead: tuple[int, Task[Drafts]] | None = None  # the round that is being drafted
        self._tried_out: list[Draft] = []  # ahead, and found good on the incumbent of that time

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        self._outcomes += outcomes
        if self._sampler:
            self._sampler.tell(outcomes)

    def prepare(self, state: SearchState, k: int) -> None:
        """Begin to draft round `state.index`."""
        n = self._slots(state.index, k)
        if self._config.prefetch is Prefetch.none or not n or self._ahead:
            return
        self._ahead = state.index, Task(lambda: self._drafted(state, n))

    def close(self) -> None:
        self._author.close()

    def ask(self, state: SearchState, k: int) -> Sequence[Proposal]:
        begun, problem = time.monotonic(), "nothing that it said could be used"
        n = self._slots(state.index, k)
        chosen: list[Attempt] = []
        if n:
            _log.info("round=%d agent=%s is asked for %d of %d", state.index, self._author.origin, n, k)
            thinking = Task(lambda: self._authored(state, n))
            try:
                chosen = thinking.wait(self._desk.check_stop)
            except AuthorError as error:
                problem = str(error)
                _log.warning("round=%d agent=%s gave nothing: %s", state.index, self._author.origin, problem)
        filled = self._filled(state, k - len(chosen), chosen)
        if n and not chosen and not filled:
            raise InterruptedRun(f"nothing was proposed for round {state.index}: {problem}", "put it right and resume")
        _log.info(
            "round=%d agent=%s edits=%d sampled=%d in %.1f s",
            *(state.index, self._author.origin, len(chosen), len(filled), time.monotonic() - begun),
        )
        return [*(made.proposal for made in chosen), *filled]

    def _slots(self, index: int, k: int) -> int:
        """The author's slots of a round, so that over the rounds its share is kept."""
        return int(self._share * k * (index + 1) + 0.5) - int(self._share * k * index + 0.5)

    # what the author wants

    def _drafted(self, state: SearchState, n: int) -> Drafts:
        """Drafts made ahead, those that can be used first. What is found out of them now is known later."""
        write_json_atomic(self._source_then(state), dict(state.source))
        drafts = _movable(self._author.draft(state, n, "draft"), state.source)
        good, _ = self._sorted(state, drafts, n, until=math.inf)
        usable = self._tried_out = [made.draft for made in good]
        return [*usable, *(draft for draft in drafts if draft not in usable)]

    def _authored(self, state: SearchState, n: int) -> list[Attempt]:
        """Up to n attempts that can be trained. Raises AuthorError where the author says nothing at all."""
        drafts, name = self._first_drafts(state, n)
        until = time.monotonic() + self._config.checks_s
        good, rejected = self._sorted(state, drafts, n, until=until)
        repairs = self._config.repairs if name != "draft" else 0  # the GPUs wait already
        for again in range(1, repairs + 1):
            if len(good) >= n or not rejected:
                break
            try:
                others = self._author.repair(state, rejected, f"{name}-repair-{again}")
            except AuthorError as error:
                _log.warning("round=%d agent=%s repaired nothing: %s", state.index, self._author.origin, error)
                break
            more, rejected = self._sorted(state, others, n - len(good), good, until=until)
            good += more
        for item in rejected:
            title = item.draft.title if item.draft else "no proposal"
            words = (state.index, self._author.origin, title, _one_line(item.problem))
            _log.info("round=%d agent=%s dropped %r: %s", *words)
        return good

    def _first_drafts(self, state: SearchState, n: int) -> tuple[Drafts, str]:
        """What was drafted ahead, looked at again, or drafts of now; and the name of the call that gave them."""
        ahead, self._ahead = self._ahead, None
        drafts: Drafts = []
        try:
            if ahead and ahead[0] == state.index:
                drafts = ahead[1].wait()
            elif self._config.prefetch is not Prefetch.none and self._author.has(state, "draft"):
                then = read_json(self._source_then(state))
                drafts = _movable(self._author.draft(state, n, "draft"), then)  # an earlier controller's
        except AuthorError as error:
            _log.info("round=%d agent=%s drafted nothing ahead: %s", state.index, self._author.origin, error)
        whole = [draft for draft in drafts if isinstance(draft, Draft)]
        if not whole:
            return self._author.draft(state, n, "propose"), "propose"
        if self._config.prefetch is Prefetch.revise and self._author.revises:
            try:
                revised = self._author.revise(state, n, whole)
                return [*revised, *(draft for draft in whole if draft not in revised)], "revise"
            except AuthorError as error:
                _log.info("round=%d agent=%s keeps its drafts: %s", state.index, self._author.origin, error)
        return drafts, "draft"

    def _source_then(self, state: SearchState) -> Path:
        """The incumbent's files when the round was drafted."""
        return self._desk.folder(state.index) / "draft.source.json"

    # whether it can be done

    def _sorted(
        self, state: SearchState, drafts: Drafts, n: int, taken: Sequence[Attempt] = (), *, until: float
    ) -> tuple[list[Attempt], list[Rejected]]:
        """At most n drafts that can be trained, and those that cannot.

        What was tried out ahead, and what is left at the time `until`, is checked in haste.
        """
        seen = {**self._tried(state), **{made.fingerprint: f"{made.proposal.title!r} of this round" for made in taken}}
        good: list[Attempt] = []
        rejected: list[Rejected] = []
        for draft in drafts:
            if len(good) == n:
                break
            if isinstance(draft, Rejected):
                rejected.append(draft)
                continue
            try:
                made = self._attempt(state, draft)
                quick = draft in self._tried_out or time.monotonic() > until
                self._check(state, made, seen, quick=quick)
            except EditError as error:
                rejected.append(Rejected(problem=str(error), draft=draft))
                continue
            seen[made.fingerprint] = f"{draft.title!r} of this round"
            good.append(made)
        return good, rejected

    def _attempt(self, state: SearchState, draft: Draft) -> Attempt:
        before, mends = state.source, draft.fixes
        if mends is not None:
            self._require_mendable(state, mends)
            before = state.failed[mends]
        return attempt(draft, before, self._brief.script, self._author.origin, state.incumbent_knobs)

    def _require_mendable(self, state: SearchState, mends: str) -> None:
        """Raise EditError unless the candidate failed in the last round, and was no mended one itself."""
        if not self._config.fix:
            raise EditError("failed candidates are not mended in this run")
        if mends not in state.failed:
            may = ", ".join(state.failed) or "none"
            raise EditError(f"{mends} cannot be mended; of the last round's candidates these can: {may}")
        failed = {outcome.candidate for outcome in self._outcomes if outcome.status is not Status.OK}
        own = next((outcome for outcome in self._outcomes if outcome.candidate == mends), None)
        if own and own.proposal.on in failed:
            raise EditError(f"{mends} was a mended one already")

    def _check(self, state: SearchState, made: Attempt, seen: Mapping[str, str], *, quick: bool) -> None:
        """Raise EditError for an attempt that was made before, breaks the space's conditions, or will not run."""
        if not self._config.allow_repeats and (same := seen.get(made.fingerprint)):
            raise EditError(f"it means the same as {same}")
        if space := self._brief.space:
            for name, value in made.proposal.knobs.items():
                if name in space.domains and value not in space.domains[name]:
                    raise EditError(f"{name} = {value!r} lies outside of what this search allows")
            script = self._brief.script
            now = _knobs_of(made.after[script], script) if script else {}
            settings = {**state.incumbent_knobs, **now, **made.proposal.knobs}
            if broken := space.check(settings, self._brief.fixed):
                raise EditError(f"it breaks the condition {broken[0]}")
        if problem := self._desk.problem(made.before, made.after, quick=quick):
            raise EditError(problem)

    def _tried(self, state: SearchState) -> dict[str, str]:
        """Fingerprint -> what it is, of everything that was tried and of the incumbent."""
        found = {o.fingerprint: _told(o) for o in self._outcomes if o.fingerprint and o.status not in _NO_FAULT}
        beside = {} if self._brief.script else state.incumbent_knobs
        return {**found, **self._running(state), fingerprint(state.source, beside): "the incumbent"}

    def _running(self, state: SearchState) -> dict[str, str]:
        """The same of what is in training, or in the round already, as far as it starts from the incumbent."""
        script, found = self._brief.script, {}
        for proposal in state.running:
            files, settings = {**state.source, **proposal.files}, {**state.incumbent_knobs, **proposal.knobs}
            with contextlib.suppress(KnobError):  # of other code
                if script:
                    files[script] = knobs.rewrite(files[script], proposal.knobs, script)
                told = f"{proposal.title!r}, whose result is not known yet"
                found[fingerprint(files, {} if script else settings)] = told
        return found

    # what the sampler adds

    def _filled(self, state: SearchState, count: int, chosen: Sequence[Attempt]) -> list[Proposal]:
        """So many proposals of the sampler, if it has as many that are new."""
        if count <= 0:
            return []
        seen = {**self._tried(state), **{made.fingerprint: "" for made in chosen}}
        found: list[Proposal] = []
        for proposal in self._sampled(state, count + len(chosen)):
            draft = Draft(title=proposal.title, knobs=proposal.knobs)
            try:
                made = attempt(draft, state.source, self._brief.script, proposal.origin, state.incumbent_knobs)
            except EditError:
                continue  # the incumbent's code has no such knob any more, or has this very value
            if made.fingerprint not in seen or self._config.allow_repeats:
                seen[made.fingerprint] = ""
                found.append(proposal)
            if len(found) == count:
                break
        return found

    def _sampled(self, state: SearchState, count: int) -> Iterator[Proposal]:
        sampler = self._sampler
        if sampler is None:
            space = around(state.incumbent_knobs)
            if space is None:
                return
            _log.info("round=%d no space is given: slots are filled with changes of the script's numbers", state.index)
            sampler = self._make_sampler(space)
            sampler.tell(self._outcomes)
        yield from sampler.ask(state, count)


def _movable(drafts: Drafts, source: Mapping[str, str]) -> Drafts:
    return [movable(draft, source) if isinstance(draft, Draft) and not draft.fixes else draft for draft in drafts]


def _knobs_of(source: str, script: str) -> Knobs:
    try:
        return knobs.read(source, script)
    except KnobError as error:
        raise EditError(str(error)) from error


def _told(outcome: Outcome) -> str:
    value = outcome.status if outcome.value is None else f"{outcome.value:.6f}"
    return f"{outcome.candidate} ({outcome.proposal.title}), which came to {value}"


def _one_line(problem: str) -> str:
    return problem.splitlines()[0] if problem else ""
