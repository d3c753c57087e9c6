"""`python -m autoresearch_hpc.init DIR`: lay out a new research repository, in which the quickstart runs.

    DIR/train.py  DIR/program.md  DIR/sbatch/  DIR/conf/cluster/mysite.yaml  DIR/conf/round/mine.yaml  DIR/.gitignore

An existing file is never overwritten; what is committed is only what was written.
"""

import argparse
import sys
from pathlib import Path

import git

from autoresearch_hpc import entry
from autoresearch_hpc.bundle import bundle_dir
from autoresearch_hpc.errors import ConfigError

_CLUSTER = """\
# Your cluster. Use it with cluster=mysite; every key is in the configuration reference.
defaults:
  - slurm
  - _self_
# partition: gpu
# account: my_project
# cpus: 12
# mem_gb: 64
# setup: ["module load cuda"]
"""

_ROUND = """\
# @package _global_
# A plan of your own. Use it with +round=mine.
defaults:
  - override /space: seed
  - override /agent: gp
plan:
  name: mine
  description: Bayesian optimization of the main knobs, eight candidates a round.
  k: 8
  max_rounds: 5
"""

_GITIGNORE = "/data/\n/runs/\n__pycache__/\n"


def lay_out(target: Path) -> list[Path]:
    """Write what is not there yet and commit it. Returns the files written. Raises ConfigError where it cannot."""
    bundle = bundle_dir()
    written: list[Path] = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for source in [bundle / "train.py", bundle / "program.md", *sorted((bundle / "sbatch").glob("*.*"))]:
            _write(target / source.relative_to(bundle), source.read_text(encoding="utf-8"), written)
        _write(target / "conf" / "cluster" / "mysite.yaml", _CLUSTER, written)
        _write(target / "conf" / "round" / "mine.yaml", _ROUND, written)
        _write(target / ".gitignore", _GITIGNORE, written)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or target} cannot be written: {error.strerror}", "choose another DIR"
        ) from error
    _commit(target, written)
    return written


def _write(path: Path, text: str, written: list[Path]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return
    written.append(path)


def _commit(target: Path, written: list[Path]) -> None:
    """A first commit in a new repository; in an existing one the files are left for the user to commit."""
    try:
        git.Repo(target, search_parent_directories=True)
        return
    except git.InvalidGitRepositoryError:
        repo = git.Repo.init(target)
    identity = []
    try:
        repo.git.var("GIT_COMMITTER_IDENT")
    except git.GitCommandError:
        identity = ["-c", "user.name=autoresearch_hpc", "-c", "user.email=autoresearch_hpc@localhost"]
    try:
        if written:
            repo.git.add("--force", "--", *[str(path.relative_to(target)) for path in written])
        repo.git.execute(["git", *identity, "commit", "--quiet", "--allow-empty", "-m", "A research repository"])
    except git.GitCommandError as error:
        said = " ".join(str(error.stderr).split()).strip("' ")
        raise ConfigError(f"git could not commit in {target}: {said}", "commit the files yourself") from error
    finally:
        repo.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m autoresearch_hpc.init", description="Lay out a research repository."
    )
    parser.add_argument("dir", type=Path, help="a new or existing directory")
    target = parser.parse_args().dir
    for path in lay_out(target):
        print(f"wrote {path}")
    if target.resolve() != Path.cwd():
        print(f"next: cd {target}")
    print("next: python -m autoresearch_hpc +round=quickstart")


if __name__ == "__main__":
    sys.exit(entry.run(main))
