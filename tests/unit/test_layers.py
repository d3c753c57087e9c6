"""The direction of the data: no stage imports a later one, nor its sibling."""

import ast
from pathlib import Path

import pytest

import autoresearch_hpc

ROOT = Path(autoresearch_hpc.__file__).parent

# Each layer may import those above it in this list, never its own or a later one.
LAYERS = [
    {"errors", "bundle", "environment", "estimates", "gains", "kernels", "leftovers", "quoting", "sandbox"},
    {"exits", "files", "literals", "records", "stopping"},
    {
        "agent_config",
        "cluster_config",
        "config",
        "plan_config",
        "task_config",
        "bounds",
        "dataset",
        "entries",
        "fingerprint",
    }
    | {"journal", "knobs", "layout", "lock"},
    {"complaints", "outcomes", "pacing", "space", "tally", "tiers"},
    {"history"},
    {"ledger"},
    {"designs", "effects", "harness", "promotion"},
    {"views"},
    {"agents", "repo", "cluster", "data", "trial", "decide", "budget", "progress", "entry"},
    {"candidates", "specs", "collect", "report", "prepare", "init", "cancel", "screening", "llm_server", "shut_in"},
    {"combine", "desk", "live", "preflight", "rundir", "submit"},
    {"committing", "fanout", "plan", "schedule", "status"},
    {"proposing"},
    {"controller"},
    {"search"},
    {"__main__"},
]
# One thing a module may import of its own layer, and why.
SIBLINGS = {
    ("literals", "records"): "the values of knobs are a record's",
    ("config", "agent_config"): "a part of it",
    ("config", "cluster_config"): "a part of it",
    ("config", "plan_config"): "a part of it",
    ("config", "task_config"): "a part of it",
    ("task_config", "agent_config"): "both are shut in the same ways",
}


def stage(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = node.module == "autoresearch_hpc"
            names = [f"autoresearch_hpc.{a.name}" for a in node.names] if inner else [node.module]
        found |= {n.split(".")[1] for n in names if n.startswith("autoresearch_hpc.")}
    return found - {"__version__"}


def level(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


FILES = sorted(p for p in ROOT.rglob("*.py") if p.name != "__init__.py" or p.parent != ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_upwards(path: Path) -> None:
    own = stage(path)
    wrong = {other for other in imports(path) - {own} if level(other) >= level(own) and (own, other) not in SIBLINGS}
    assert not wrong, f"{own} imports {', '.join(sorted(wrong))}"


def test_only_one_module_knows_git_and_one_package_submitit() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        names = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
        assert "git" not in names or stage(path) in ("repo", "init"), path
        assert "submitit" not in names or stage(path) == "cluster", path
