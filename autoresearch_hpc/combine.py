"""Combinations of near misses: edits that each looked better, but not by enough to be kept, tried together.

An edit is what a near miss changed against the incumbent that it was compared with: knobs, and the code of files. Edits
go onto the present incumbent one after another, by three-way merges: a knob or a line that both sides have changed, and
not to the same, is a conflict, and the two do not go together. Samplers set all knobs of a space, so what counts is
which values differ. Everything follows from the history: who resumes proposes the same.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from autoresearch_hpc import knobs
from autoresearch_hpc.agents.protocol import Brief
from autoresearch_hpc.agents.titles import changes
from autoresearch_hpc.candidates import CandidateMaker
from autoresearch_hpc.errors import ConfigError, KnobError
from autoresearch_hpc.fingerprint import fingerprint
from autoresearch_hpc.history import Entry, History
from autoresearch_hpc.records import Candidate, Knobs, KnobValue, Proposal, Verdict, candidate_id

__all__ = ["Combiner", "Edit", "Merge", "Version", "combinations", "onto"]

_log = logging.getLogger(__name__)

Merge = Callable[[str, str, str], str | None]  # base, ours, theirs; None where they conflict
_ABSENT = object()
_BASELINE = candidate_id(0, 0)
_FIRST_ROUND = 2  # before, no round has been judged but the baseline's
_MOST_PARTS = 8  # near misses that are looked at: the best ones
_TITLE_CHARS = 60  # of a part


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What a candidate is: its files (path -> text) and all of its knobs. `script` holds them, if a file does."""

    files: Mapping[str, str]
    knobs: Knobs
    script: str | None = None

    def text(self, path: str, like: "Version") -> str:
        """A file's text, with those knobs that both have set as `like` has them. Raises KnobError."""
        if path != self.script:
            return self.files[path]
        values = {name: value for name, value in like.knobs.items() if name in self.knobs}
        return knobs.rewrite(self.files[path], values, path)

    def code_over(self, other: "Version") -> tuple[str, ...]:
        """The files that differ in more than comments, formatting and the values of knobs."""
        return tuple(path for path in self.files if self._differs(path, other))

    def _differs(self, path: str, other: "Version") -> bool:
        try:
            return fingerprint({path: self.text(path, other)}) != fingerprint({path: other.files[path]})
        except KnobError:  # a constant of another type is another code
            return True

    def settings_over(self, other: "Version") -> dict[str, KnobValue]:
        """The knobs that differ. One that only this script has is code."""
        known = {name: value for name, value in self.knobs.items() if self.script is None or name in other.knobs}
        return {name: value for name, value in known.items() if name not in other.knobs or other.knobs[name] != value}


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What a near miss changed: `settings`, and the code of the files at the paths `code`."""

    id: str
    title: str
    before: Version
    after: Version
    settings: Knobs
    code: tuple[str, ...]

    @classmethod
    def of(cls, id_: str, title: str, before: Version, after: Version) -> "Edit":
        settings, code = after.settings_over(before), after.code_over(before)
        return cls(id=id_, title=title, before=before, after=after, settings=settings, code=code)


def onto(ours: Version, edit: Edit, merge: Merge) -> Version | None:
    """`ours` with the edit; None where the two do not go together, or the edit changes nothing there."""
    before, after = edit.before, edit.after
    for name in before.knobs.keys() | edit.settings.keys():
        base, mine, theirs = (version.knobs.get(name, _ABSENT) for version in (before, ours, after))
        if theirs != base and mine not in (base, theirs):
            return None
    try:
        files = dict(ours.files)
        for path in edit.code:
            merged = merge(before.files[path], ours.text(path, before), after.text(path, before))
            if merged is None:
                return None
            files[path] = merged
        made = _set(replace(ours, files=files), {**ours.knobs, **edit.settings})
    except KnobError:  # one side has given a constant another type
        return None
    if (ours.knobs.keys() & after.knobs.keys()) - made.knobs.keys():  # assigned twice, in different places
        return None
    return None if made == ours else made


def combinations(
    incumbent: Version,
    edits: Sequence[Edit],
    merge: Merge,
    allowed: Callable[[Version], bool],
    tried: frozenset[frozenset[str]] = frozenset(),
) -> Iterator[tuple[tuple[Edit, ...], Version]]:
    """Sets of edits that go together on the incumbent, and what they make of it; those that were not tried.

    As many as go together come first, the best edits having the first say; then pairs, then single ones.
    """
    largest: list[Edit] = []
    version = incumbent
    for edit in edits:
        more = onto(version, edit, merge)
        if more is not None and allowed(more):
            largest.append(edit)
            version = more
    seen = set(tried)
    if largest and (ids := _ids(largest)) not in seen:
        seen.add(ids)
        yield tuple(largest), version
    for parts in [*itertools.combinations(edits, 2), *((edit,) for edit in edits)]:
        if _ids(parts) not in seen:
            made: Version | None = incumbent
            for edit in parts:
                made = onto(made, edit, merge) if made else None
            if made is not None and allowed(made):
                yield parts, made


class Combiner:
    """Proposes combinations of a run's near misses. Only a combination that changes code is checked at the desk."""

    def __init__(self, brief: Brief, maker: CandidateMaker, merge: Merge) -> None:
        self._brief, self._maker, self._merge = brief, maker, merge

    def propose(self, history: History, index: int, k: int) -> list[Proposal]:
        """Combinations for round `index`, which has room for k candidates beside those that it has already."""
        plan, standing = self._brief.plan, history.incumbent
        begun = list(history.rounds[index].entries.values()) if index < len(history.rounds) else []
        most = min(plan.combine, (len(begun) + k) // 2) - sum(bool(entry.proposal.parts) for entry in begun)
        most = min(most, k)
        if index < _FIRST_ROUND or most < 1 or not plan.is_open(index) or standing is None or not history.pool:
            return []
        incumbent = self._version(history.entry(standing.candidate).candidate)
        entries = list(history.entries())
        edits = list(self._edits([history.entry(id_) for id_ in history.pool[:_MOST_PARTS]], entries))
        known = {entry.candidate.fingerprint for entry in entries if entry.candidate}
        tried = frozenset(frozenset(entry.proposal.parts) for entry in entries)
        proposals: list[Proposal] = []
        for parts, version in combinations(incumbent, edits, self._merge, self._allowed, tried):
            if len(proposals) == most:
                break
            if (print_ := self._fingerprint(version)) in known:
                continue
            known.add(print_)
            proposal = self._proposal(parts, version, incumbent, standing.candidate)
            if problem := self._problem(proposal, incumbent, version):
                _log.info("round=%d agent=combine dropped %r: %s", index, proposal.title, problem.splitlines()[0])
                continue
            _log.info("round=%d agent=combine %s", index, proposal.title)
            proposals.append(proposal)
        return proposals

    # what there is

    def _version(self, candidate: Candidate | None) -> Version:
        assert candidate
        files, script = self._maker.texts(candidate.commit), self._brief.script
        settings = knobs.read(files[script], script) if script else candidate.knobs
        return Version(files=files, knobs=settings, script=script)

    def _edits(self, near: Sequence[Entry], entries: Sequence[Entry]) -> Iterator[Edit]:
        by_commit = {entry.candidate.commit: entry for entry in entries if entry.candidate}
        for entry in near:
            if standing := _built_on(entry, by_commit):
                before, after = self._version(standing.candidate), self._version(entry.candidate)
                yield Edit.of(entry.id, entry.proposal.title, before, after)

    def _fingerprint(self, version: Version) -> str:
        return fingerprint(version.files, {} if version.script else version.knobs)

    # what may be proposed

    def _allowed(self, version: Version) -> bool:
        try:
            return self._brief.space is None or not self._brief.space.check(version.knobs, self._brief.fixed)
        except ConfigError:  # a bound names a knob that an edit has removed
            return False

    def _problem(self, proposal: Proposal, incumbent: Version, version: Version) -> str:
        desk = self._brief.desk
        if desk is None or not proposal.files:
            return ""
        desk.check_stop()
        return desk.problem(incumbent.files, version.files)

    def _proposal(self, parts: Sequence[Edit], version: Version, incumbent: Version, on: str) -> Proposal:
        ids, settings = [edit.id for edit in parts], version.settings_over(incumbent)
        told = [edit.title[:_TITLE_CHARS] for edit in parts if edit.code]
        words = "; ".join([*told, *([changes(settings, {})] if settings else [])])
        names, reasoning = f"{ids[0]} on {on}", f"A near miss that was tried on an earlier incumbent than {on}."
        if len(ids) > 1:
            names = " + ".join(ids)
            reasoning = f"Near misses, together on {on}: each alone was too small to tell from luck."
        return Proposal(
            title=f"{names}: {words}",
            knobs=settings,
            files={path: version.files[path] for path in version.code_over(incumbent)},
            origin="combine",
            reasoning=reasoning,
            parts=tuple(ids),
        )


def _built_on(entry: Entry, by_commit: Mapping[str, Entry]) -> Entry | None:
    """The incumbent that it descends from; what lies between, such as a failure that it mends, is in its edit."""
    parent = by_commit.get(entry.candidate.parent) if entry.candidate else None
    if parent is None or parent.id == _BASELINE or parent.verdict is Verdict.KEEP:
        return parent
    return _built_on(parent, by_commit)


def _set(version: Version, values: Knobs) -> Version:
    """The version with its knobs set, as far as it still has them. Raises KnobError."""
    if version.script is None:
        return replace(version, knobs=dict(values))
    text = version.files[version.script]
    has = knobs.read(text, version.script)
    text = knobs.rewrite(text, {name: values[name] for name in has if name in values}, version.script)
    return replace(version, files={**version.files, version.script: text}, knobs=knobs.read(text, version.script))


def _ids(edits: Sequence[Edit]) -> frozenset[str]:
    return frozenset(edit.id for edit in edits)
