"""Where conf/, sbatch/, program.md and train.py lie: beside the package in a clone, inside it when installed."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def bundle_dir() -> Path:
    """The directory that holds conf/, sbatch/, program.md and train.py."""
    installed = _PACKAGE / "_bundle"
    return installed if installed.is_dir() else _PACKAGE.parent
