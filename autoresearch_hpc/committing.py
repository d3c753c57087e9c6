"""Proposals become commits, each on the candidate that it builds on."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from autoresearch_hpc import views
from autoresearch_hpc.candidates import CandidateMaker
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.history import Entry, History, Round
from autoresearch_hpc.records import Candidate

_COMMITS_AT_ONCE = 8  # git mostly waits for the filesystem


class Committer:
    """Makes a round's candidates."""

    def __init__(self, history: History, maker: CandidateMaker) -> None:
        self._history, self._maker = history, maker

    def commit(self, round_: Round) -> list[Candidate]:
        """A commit for every proposal of the round that has none yet, in their order.

        Raises ConfigError for one that builds on no earlier candidate.
        """
        new = [entry for entry in round_.entries.values() if entry.candidate is None]
        if not new:
            return []
        made: dict[str, Candidate] = {}

        def make(entry: Entry) -> Candidate:
            parent = self._parent(entry, made)
            commit, knobs = (parent.commit, parent.knobs) if parent else (round_.base, {})
            return self._maker.make(entry.id, round_.index, entry.proposal, commit, knobs)

        with ThreadPoolExecutor(_COMMITS_AT_ONCE) as pool:
            while waiting := [entry for entry in new if entry.id not in made]:
                ids = {entry.id for entry in waiting}
                ready = [entry for entry in waiting if self._parent_id(entry) not in ids]
                ready = ready or waiting[:1]  # in a circle: it will be refused
                made |= {candidate.id: candidate for candidate in pool.map(make, ready)}
        return [made[entry.id] for entry in new]

    def _parent_id(self, entry: Entry) -> str | None:
        """The id of the candidate to build on, or the name that nobody has; None for the baseline."""
        if entry.id == views.BASELINE:
            return None
        name = entry.proposal.on or views.standing(self._history)
        found = self._history.find(name)
        return found.id if found else name

    def _parent(self, entry: Entry, made: Mapping[str, Candidate]) -> Candidate | None:
        """The candidate to build on; None for the baseline, which builds on the user's commit."""
        name = self._parent_id(entry)
        if name is None:
            return None
        found = self._history.find(name)
        candidate = made.get(found.id) or found.candidate if found else None
        if candidate is None:
            raise ConfigError(f"{entry.id} builds on {name!r}, which is no earlier candidate", "correct the plan")
        return candidate
