"""Every path of a run, in one class.

runs/<tag>/
  config.yaml  journal.jsonl  results.tsv  candidates.csv  trials.csv  progress.png  report.html
  controller.lock  controller.log
  rounds/03/arrays/<job name>/     array.json, the sbatch file and the logs of Slurm's side
  rounds/03/agent/                 what the agent was told and what it answered
  rounds/03/r03-c02/               proposal.json  diff.patch  src/
  rounds/03/r03-c02/trials/t0/     trial.json  claim-0.json  phases.json  train.log  checkpoint.pt  result.json
"""

from dataclasses import dataclass
from pathlib import Path

from autoresearch_hpc.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TrialPaths:
    """The files of one trial."""

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "trial.json"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def phases(self) -> Path:
        return self.root / "phases.json"

    @property
    def log(self) -> Path:
        return self.root / "train.log"

    @property
    def evaluate_log(self) -> Path:
        return self.root / "evaluate.log"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint.pt"

    @property
    def session(self) -> Path:
        return self.root / "session.json"

    def claim(self, attempt: int) -> Path:
        """Created exclusively by the worker that runs this attempt: whoever comes second leaves."""
        return self.root / f"claim-{attempt}.json"


@dataclass(frozen=True, slots=True)
class ArrayPaths:
    """The files of one submission."""

    root: Path

    @property
    def manifest(self) -> Path:
        return self.root / "array.json"

    def log(self, job: str) -> Path:
        """What Slurm and the worker said in this job (`<array>_<index>`); need not exist."""
        return self.root / f"{job}_0_log.out"


@dataclass(frozen=True, slots=True)
class RunLayout:
    """The files of one run; `root` is `runs/<tag>`."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def journal(self) -> Path:
        return self.root / "journal.jsonl"

    @property
    def lock(self) -> Path:
        return self.root / "controller.lock"

    @property
    def log(self) -> Path:
        return self.root / "controller.log"

    @property
    def inbox(self) -> Path:
        """One empty file for each trial whose result the controller has not yet taken in, put there by its worker."""
        return self.root / "inbox"

    @property
    def cancel_request(self) -> Path:
        """Asks the run's controller, wherever it is, to cancel and stop."""
        return self.root / "cancel-request"

    @property
    def results_tsv(self) -> Path:
        return self.root / "results.tsv"

    @property
    def candidates_csv(self) -> Path:
        return self.root / "candidates.csv"

    @property
    def effects_csv(self) -> Path:
        return self.root / "effects.csv"

    @property
    def trials_csv(self) -> Path:
        return self.root / "trials.csv"

    @property
    def progress_png(self) -> Path:
        return self.root / "progress.png"

    @property
    def effects_png(self) -> Path:
        return self.root / "effects.png"

    @property
    def report_html(self) -> Path:
        return self.root / "report.html"

    def round(self, index: int) -> Path:
        return self.root / "rounds" / f"{index:02d}"

    def agent(self, index: int) -> Path:
        """What the agent keeps of its thoughts for a round."""
        return self.round(index) / "agent"

    def candidate(self, candidate: str) -> Path:
        """Of `r03-c02`: rounds/03/r03-c02."""
        return self.round(int(candidate.split("-")[0][1:])) / candidate

    def proposal(self, candidate: str) -> Path:
        return self.candidate(candidate) / "proposal.json"

    def diff(self, candidate: str) -> Path:
        return self.candidate(candidate) / "diff.patch"

    def src(self, candidate: str) -> Path:
        return self.candidate(candidate) / "src"

    def trial(self, trial: str) -> TrialPaths:
        """Of `r03-c02-t0`: rounds/03/r03-c02/trials/t0."""
        candidate, _, index = trial.rpartition("-")
        return TrialPaths(self.candidate(candidate) / "trials" / index)

    def array(self, round_: int, job_name: str) -> ArrayPaths:
        return ArrayPaths(self.round(round_) / "arrays" / job_name)


def all_runs(runs_dir: Path) -> list[RunLayout]:
    """The runs kept in runs_dir, the one that wrote its journal last first; a directory without a journal is no run."""
    journals = [(path.stat().st_mtime, path.parent) for path in runs_dir.glob("*/journal.jsonl")]
    return [RunLayout(root) for _, root in sorted(journals, reverse=True)]


def find_run(name: str | None, runs_dir: Path) -> RunLayout:
    """The run of a tag or a path; of None, the newest. Raises ConfigError naming the runs there are."""
    if name:
        for root in (runs_dir / name, Path(name)):
            if (root / "journal.jsonl").is_file():
                return RunLayout(root)
    runs = all_runs(runs_dir)
    if name is None and runs:
        return runs[0]
    there_are = f"there are: {', '.join(sorted(run.root.name for run in runs))}" if runs else "none was started yet"
    raise ConfigError(f"no run {name!r} in {runs_dir}" if name else f"no run in {runs_dir}", there_are)
