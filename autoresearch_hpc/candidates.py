"""Proposals become candidates: an edit of the parent's files, a git commit, an export for the trials to run."""

from collections.abc import Mapping

from autoresearch_hpc import knobs
from autoresearch_hpc.config import KnobsBy, TaskConfig, TaskKind
from autoresearch_hpc.errors import ConfigError
from autoresearch_hpc.files import write_json_atomic, write_text_atomic
from autoresearch_hpc.fingerprint import fingerprint
from autoresearch_hpc.layout import RunLayout
from autoresearch_hpc.records import Candidate, Knobs, Proposal, to_json
from autoresearch_hpc.repo import Repo


class CandidateMaker:
    """Makes a run's candidates."""

    def __init__(self, repo: Repo, layout: RunLayout, task: TaskConfig, tag: str) -> None:
        self._repo, self._layout, self._task, self._tag = repo, layout, task, tag

    def make(self, id_: str, round_: int, proposal: Proposal, parent: str, parent_knobs: Knobs) -> Candidate:
        """Commit the proposal on parent, and write its proposal.json, diff.patch and src/.

        Raises ConfigError (KnobError, RepoError) for an edit that cannot be made.
        """
        files = self.edit(proposal, parent)
        commit = self._repo.commit(parent, files, f"{id_}: {proposal.title}")
        self._repo.keep(self._tag, id_, commit)
        patch, diff_lines = self._repo.diff(parent, commit)
        texts = {**self.texts(parent), **files}
        script = knobs.read(texts[self._task.script], self._task.script) if self.rewrites else {}
        settings = {**parent_knobs, **script, **self._travelling(proposal)}
        candidate = Candidate(
            id=id_,
            round=round_,
            proposal=proposal,
            parent=parent,
            commit=commit,
            knobs=settings,
            diff_lines=diff_lines,
            net_lines=_net_lines(patch),
            fingerprint=fingerprint(texts, {} if self.rewrites else settings),
        )
        self._layout.candidate(id_).mkdir(parents=True, exist_ok=True)
        write_json_atomic(self._layout.proposal(id_), to_json(candidate))
        write_text_atomic(self._layout.diff(id_), patch)
        self._repo.export(commit, self._task.export_paths, self._layout.src(id_))
        return candidate

    def edit(self, proposal: Proposal, parent: str) -> Mapping[str, str]:
        """The files that the proposal changes, with their new text."""
        editable = self._task.editable_paths
        forbidden = sorted(set(proposal.files) - set(editable))
        if forbidden:
            raise ConfigError(
                f"a proposal changes {', '.join(forbidden)}",
                f"only {', '.join(editable)} may be edited",
            )
        files = dict(proposal.files)
        if proposal.knobs and self.rewrites:
            script = self._task.script
            text = files.get(script) or self._repo.read(parent, script)
            files[script] = knobs.rewrite(text, proposal.knobs, script)
        return files

    @property
    def rewrites(self) -> bool:
        """Whether knobs are constants of the script."""
        return self._task.kind is TaskKind.gpt or self._task.knobs_by is KnobsBy.rewrite

    def sources(self, commit: str) -> dict[str, str]:
        """The editable files of a commit, path -> text."""
        return {path: self._repo.read(commit, path) for path in self._task.editable_paths}

    def texts(self, commit: str) -> dict[str, str]:
        """All that decides what a candidate is: its editable files, and the script whose constants are the knobs."""
        script = {self._task.script: self._repo.read(commit, self._task.script)} if self.rewrites else {}
        return {**script, **self.sources(commit)}

    def script_knobs(self, commit: str) -> Knobs:
        """The constants of the script in a commit; none where knobs travel another way."""
        return knobs.read(self._repo.read(commit, self._task.script), self._task.script) if self.rewrites else {}

    def _travelling(self, proposal: Proposal) -> Knobs:
        return {} if self.rewrites else proposal.knobs


def _net_lines(patch: str) -> int:
    """Lines added less lines removed, by a unified diff."""
    lines = [line for line in patch.splitlines() if not line.startswith(("+++ ", "--- "))]
    return sum(line.startswith("+") for line in lines) - sum(line.startswith("-") for line in lines)
