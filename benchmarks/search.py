"""How well every agent searches the real problem: 24 GPU-hours of it, played against a surrogate of real trials.

    python benchmarks/search.py --trials h200_trials.csv.gz              the table; --quick for minutes
    python benchmarks/search.py --trials ... --agents tpe,cmaes --ks 16 --seeds 20 --jobs 8 --runs runs.jsonl
    python benchmarks/search.py --trials ... --runs runs.jsonl --markdown --plot docs/images/search.png

The trials are a CSV with the columns method, seed, trial, val_bpb, ok, wall_s and one for each knob of space/h200. A
setting's score is learned from them by boosted trees and by a Gaussian process, of which the mean is taken; boosted
trees learn whether it fits into memory. A setting has one true score and always the same fate; what a trial measures
is the true score with the noise of the real trials' replicates. Both models know nothing of what no search has tried:
there trees repeat the nearest leaf, and the process falls back to the average. So a table of this program compares
searches, it does not say what a GPU would reach. --truth trees leaves the process out, for the agent gp is one
itself.

Agents are the package's own, built from a Brief, asked and told as the controller does it; the incumbent is the best
measured. A trial costs 300 s, one that fails 30 s, a round lasts as long as its longest trial. Needs scikit-learn,
which nothing else here does: pip install scikit-learn.
"""

import argparse
import csv
import gzip
import hashlib
import json
import multiprocessing
import os
import pickle
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # runs are parallel, not their arithmetic
import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from autoresearch_hpc.agents import Brief, build
from autoresearch_hpc.agents.gaussian import Process, most_probable
from autoresearch_hpc.config import AgentConfig, PlanConfig, SpaceConfig
from autoresearch_hpc.records import Direction, Knobs, Outcome, Proposal, SearchState, Status, candidate_id
from autoresearch_hpc.space import Space, from_config

Floats = NDArray[np.float64]
Setting = Mapping[str, Any]

ROOT = Path(__file__).parents[1]
FLOOR = 0.96  # scores are learned as log(val_bpb - FLOOR): what matters is near the best, 0.974
TRIAL_S, FAILED_S = 300.0, 30.0
FIXED: Knobs = {"SEQ_LEN": 2048, "VOCAB_SIZE": 8192}
BASELINE: Knobs = {
    "DEPTH": 8,
    "ASPECT_RATIO": 64,
    "HEAD_DIM": 128,
    "DEVICE_BATCH_SIZE": 128,
    "TOTAL_BATCH_SIZE": 2**19,
    "EMBEDDING_LR": 0.6,
    "UNEMBEDDING_LR": 0.004,
    "MATRIX_LR": 0.04,
    "SCALAR_LR": 0.5,
    "WEIGHT_DECAY": 0.2,
    "WARMUP_RATIO": 0.0,
    "WARMDOWN_RATIO": 0.5,
    "FINAL_LR_FRAC": 0.0,
    "WINDOW_PATTERN": "SSSL",
}
LOGS = ("HEAD_DIM", "DEVICE_BATCH_SIZE", "TOTAL_BATCH_SIZE", "EMBEDDING_LR", "UNEMBEDDING_LR", "MATRIX_LR", "SCALAR_LR")
FOLDS = 5
SAMPLE = 300  # trials from which the smooth half learns its lengths, and as many of the better half
AGENTS: dict[str, dict[str, Any]] = {  # what is played, as `agent.*` of a configuration
    "random": {"name": "random"},
    "cmaes": {"name": "cmaes"},
    "tpe": {"name": "tpe"},
    "gp": {"name": "gp"},
}


# ---- the surrogate


@dataclass(frozen=True, slots=True)
class Forest:
    """Boosted trees as flat arrays: start + sum over trees of the leaf that a row reaches."""

    start: float
    roots: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: Floats
    left: NDArray[np.int64]  # of a leaf the leaf itself
    right: NDArray[np.int64]
    value: Floats
    depth: int

    @classmethod
    def flat(cls, model: Any, rows: Floats) -> "Forest":
        trees = [tree.tree_ for tree in model.estimators_[:, 0]]
        sizes = np.array([tree.node_count for tree in trees])
        roots = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        own = np.arange(sizes.sum())
        leaf = np.concatenate([tree.children_left < 0 for tree in trees])
        left, right = (
            np.where(leaf, own, np.concatenate([getattr(t, side) + r for t, r in zip(trees, roots, strict=True)]))
            for side in ("children_left", "children_right")
        )
        value = model.learning_rate * np.concatenate([tree.value[:, 0, 0] for tree in trees])
        feature = np.concatenate([np.maximum(tree.feature, 0) for tree in trees])
        threshold = np.concatenate([tree.threshold for tree in trees])
        flat = cls(0.0, roots, feature, threshold, left, right, value, max(tree.max_depth for tree in trees))
        raw = model.decision_function(rows[:1]) if hasattr(model, "decision_function") else model.predict(rows[:1])
        return cls(float(raw[0] - flat(rows[:1])[0]), *(getattr(flat, name) for name in cls.__slots__[1:]))

    def __call__(self, rows: Floats) -> Floats:
        """(N, features) -> (N,)"""
        rows = rows.astype(np.float32)  # as the trees were grown
        node = np.broadcast_to(self.roots, (len(rows), len(self.roots)))
        which = np.arange(len(rows))[:, None]
        for _ in range(self.depth):
            node = np.where(rows[which, self.feature[node]] <= self.threshold[node], self.left[node], self.right[node])
        return self.start + self.value[node].sum(axis=1)


class Smooth:
    """A Gaussian process over features: its lengths from a sample of the trials, conditioned on all of them."""

    def __init__(self, rows: Floats, target: Floats) -> None:
        self._centre, self._scale = rows.mean(axis=0), 3.5 * np.maximum(rows.std(axis=0), 1e-9)
        self._mean, self._spread = target.mean(), target.std()
        points, values = (rows - self._centre) / self._scale, (target - self._mean) / self._spread
        better = np.argsort(target, kind="stable")[: len(target) // 2][:: max(len(target) // 2 // SAMPLE, 1)]
        sample = np.union1d(np.random.default_rng(0).permutation(len(target))[:SAMPLE], better)
        self._process = Process(points, values, most_probable(points[sample], values[sample]))

    def __call__(self, rows: Floats) -> Floats:
        """(N, features) -> (N,)"""
        return self._mean + self._spread * self._process.mean((rows - self._centre) / self._scale)


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The truth of the benchmark: the mean of what `scores` say, where `fits` is above 0. `errors` are in words."""

    scores: Sequence[Callable[[Floats], Floats]]  # of log(val_bpb - FLOOR)
    fits: Forest
    noise: float  # standard deviation of log(val_bpb - FLOOR) between trials of one setting
    errors: tuple[str, ...]

    def truth(self, settings: Sequence[Setting]) -> Floats:
        """True scores, NaN of what fails."""
        rows = features(settings)
        score = np.mean([part(rows) for part in self.scores], axis=0)
        return np.where(self.fits(rows) > 0, FLOOR + np.exp(score), np.nan)


def features(settings: Sequence[Setting]) -> Floats:
    """(N, 23): the knobs on their scales, and the sizes that memory and compute go by."""
    columns = {name: np.array([float(s[name]) for s in settings]) for name in BASELINE if name != "WINDOW_PATTERN"}
    depth, heads = columns["DEPTH"], columns["HEAD_DIM"]
    width = np.ceil(depth * columns["ASPECT_RATIO"] / heads) * heads
    rows = columns["DEVICE_BATCH_SIZE"]
    long = np.array([[letter == "L" for letter in str(s["WINDOW_PATTERN"])] for s in settings], dtype=float)
    scaled = [np.log2(column) if name in LOGS else column for name, column in columns.items()]
    sizes = [np.log2(width), np.log2(depth * width**2), np.log2(rows * depth * width), np.log2(rows * width)]
    return np.column_stack([*scaled, long, long.sum(axis=1), *sizes])


@dataclass(frozen=True, slots=True)
class RealTrials:
    settings: list[dict[str, Any]]
    score: Floats  # NaN of what failed
    setting_of: NDArray[np.int64]  # equal for trials of one setting
    search_of: NDArray[np.int64]  # equal for trials of one search


def read_trials(path: Path) -> RealTrials:
    """Raises OSError, KeyError."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    settings = [
        {name: row[name] if name == "WINDOW_PATTERN" else float(row[name]) for name in BASELINE} for row in rows
    ]
    keys, searches = [tuple(s.values()) for s in settings], [(row["method"], row["seed"]) for row in rows]
    return RealTrials(
        settings,
        np.array([float(row["val_bpb"]) if row["ok"] == "1" else np.nan for row in rows]),
        *(np.array([order[key] for key in of]) for of in (keys, searches) for order in [_numbered(of)]),
    )


def _numbered(keys: Sequence[Any]) -> dict[Any, int]:
    return {key: i for i, key in enumerate(dict.fromkeys(keys))}


def fit(trials: RealTrials, truth: str = "both", num_trees: int = 500) -> Surrogate:
    """Learn from all trials; errors come from models that did not see a setting, or a whole search."""
    from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
    from sklearn.metrics import brier_score_loss, r2_score, roc_auc_score
    from sklearn.model_selection import GroupKFold

    common = {"n_estimators": num_trees, "learning_rate": 20 / num_trees, "subsample": 0.5, "random_state": 0}
    data, ok = features(trials.settings), ~np.isnan(trials.score)
    target = np.log(trials.score[ok] - FLOOR)

    def scores(rows: Floats, values: Floats) -> list[Callable[[Floats], Floats]]:
        trees = GradientBoostingRegressor(max_depth=6, min_samples_leaf=3, max_features=0.5, **common)
        made: dict[str, Callable[[], Callable[[Floats], Floats]]] = {
            "trees": lambda: Forest.flat(trees.fit(rows, values), rows),
            "smooth": lambda: Smooth(rows, values),
        }
        return [make() for name, make in made.items() if truth in (name, "both")]

    def fits(rows: Floats, succeeded: NDArray[np.bool_]) -> Forest:
        model = GradientBoostingClassifier(max_depth=3, max_features=0.5, **common)
        return Forest.flat(model.fit(rows, succeeded), rows)

    errors = []
    for unit, groups in (("settings", trials.setting_of), ("whole searches", trials.search_of)):
        guess, chance = np.zeros(len(data)), np.zeros(len(data))
        for seen, unseen in GroupKFold(min(FOLDS, len(set(groups)))).split(data, groups=groups):
            parts = scores(data[seen][ok[seen]], np.log(trials.score[seen][ok[seen]] - FLOOR))
            guess[unseen] = FLOOR + np.exp(np.mean([part(data[unseen]) for part in parts], axis=0))
            chance[unseen] = 1 / (1 + np.exp(-fits(data[seen], ok[seen])(data[unseen])))
        values, guess = trials.score[ok], guess[ok]
        good = values < np.median(values)
        errors.append(
            f"on unseen {unit}: R2 {r2_score(values, guess):.3f}, MAE {np.abs(guess - values).mean():.6f}, of the "
            f"better half R2 {r2_score(values[good], guess[good]):.3f}, MAE {np.abs(guess - values)[good].mean():.6f}, "
            f"bias {(guess - values)[good].mean():+.6f}; fits into memory: AUC {roc_auc_score(ok, chance):.4f}, "
            f"Brier {brier_score_loss(ok, chance):.4f}, {100 * np.mean((chance > 0.5) == ok):.1f} % right"
        )
    noise = _replicate_sd(target, trials.setting_of[ok])
    return Surrogate(scores(data[ok], target), fits(data, ok), noise, tuple(errors))


def _replicate_sd(target: Floats, setting_of: NDArray[np.int64]) -> float:
    """Pooled within the settings of the better half that were run again: worse ones diverge now and then."""
    by_setting = defaultdict(list)
    for value, setting in zip(target, setting_of, strict=True):
        by_setting[setting].append(value)
    again = [v for v in by_setting.values() if len(v) > 1 and np.mean(v) < np.median(target)]
    return float(np.sqrt(sum(np.var(v) * len(v) for v in again) / max(sum(len(v) - 1 for v in again), 1)))


def cached(path: Path, folder: Path, truth: str) -> Surrogate:
    """The surrogate of the trials in a file, fitted once for each content of it and of this program's models."""
    models = Path(__file__).read_text(encoding="utf-8").split("# ----")[1].encode()
    mark = hashlib.sha256(path.read_bytes() + models + truth.encode()).hexdigest()[:16]
    place = folder / f"search-surrogate-{mark}.pickle"  # made and read by this program alone
    if not place.exists():
        made = fit(read_trials(path), truth)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(pickle.dumps(made))
    kept: Surrogate = pickle.loads(place.read_bytes())
    return kept


# ---- playing


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One search. `path` has (GPU hours, wall hours, true score of the best measured) after each round."""

    agent: str
    k: int
    seed: int
    num_trials: int
    num_failed: int
    path: list[tuple[float, float, float]] = field(default_factory=list)
    thinking_s: float = 0.0

    @property
    def final(self) -> float:
        return self.path[-1][2]


def play(surrogate: Surrogate, agent: str, k: int, seed: int, gpu_hours: float = 24.0) -> Run:
    """One search by one agent, K trials a round as long as the worst case of a round fits into the budget."""
    config = AgentConfig(**AGENTS[agent])
    player = build(
        Brief(config=config, plan=PlanConfig(name="bench", max_rounds=1000), space=space(), seed=seed, fixed=FIXED)
    )
    rng = np.random.default_rng(seed)
    told: list[Outcome] = []
    spent_s = wall_s = thinking_s = 0.0
    best, path = (np.inf, np.inf), []
    incumbent: Outcome | None = None
    proposals: Sequence[Proposal] = [Proposal(title="baseline", knobs=BASELINE)]
    while proposals:
        truths = surrogate.truth([p.knobs for p in proposals])
        measured = FLOOR + (truths - FLOOR) * np.exp(surrogate.noise * rng.standard_normal(len(truths)))
        heard = [
            Outcome(
                candidate=candidate_id(len(path), i),
                round=len(path),
                proposal=proposal,
                knobs={**BASELINE, **proposal.knobs},
                status=Status.OOM if np.isnan(value) else Status.OK,
                value=None if np.isnan(value) else float(value),
            )
            for i, (proposal, value) in enumerate(zip(proposals, measured, strict=True))
        ]
        costs = np.where(np.isnan(truths), FAILED_S, TRIAL_S)
        spent_s, wall_s = spent_s + costs.sum(), wall_s + costs.max()
        for outcome, truth in zip(heard, truths, strict=True):
            if outcome.value is not None and outcome.value < best[0]:
                best, incumbent = (outcome.value, float(truth)), outcome
        told += heard
        path.append((spent_s / 3600, wall_s / 3600, best[1]))
        started = time.process_time()
        player.tell(heard)
        room = int((gpu_hours * 3600 - spent_s) // TRIAL_S)
        proposals = player.ask(_state(len(path), incumbent, told), min(k, room)) if room else []
        thinking_s += time.process_time() - started
    failed = sum(o.value is None for o in told)
    return Run(agent=agent, k=k, seed=seed, num_trials=len(told), num_failed=failed, path=path, thinking_s=thinking_s)


def _state(index: int, incumbent: Outcome | None, told: list[Outcome]) -> SearchState:
    return SearchState(
        index=index,
        direction=Direction.min,
        metric="val_bpb",
        incumbent=incumbent.candidate if incumbent else None,
        incumbent_value=incumbent.value if incumbent else None,
        incumbent_knobs=incumbent.knobs if incumbent else BASELINE,
        source={},
        outcomes=tuple(told),
    )


def space() -> Space:
    """space/h200."""
    loaded = OmegaConf.load(ROOT / "conf" / "space" / "h200.yaml")
    built = from_config(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SpaceConfig), loaded)), BASELINE)
    assert built is not None
    return built


_surrogate: Surrogate


def _start(surrogate: Surrogate) -> None:
    global _surrogate
    _surrogate = surrogate


def _play(what: tuple[str, int, int, float]) -> Run:
    return play(_surrogate, *what)


def play_all(surrogate: Surrogate, wanted: Sequence[tuple[str, int, int, float]], jobs: int) -> Iterator[Run]:
    """Runs as they end, in `jobs` processes."""
    with multiprocessing.get_context("fork").Pool(jobs, _start, (surrogate,)) as pool:
        yield from pool.imap_unordered(_play, wanted)


# ---- what comes out

HEAD = [
    "agent",
    "K",
    "seeds",
    "median",
    "quartiles",
    "mean",
    "against tpe, K=1",
    "trials",
    "failed",
    "wall h",
    "agent CPU s",
]


def rows(runs: Sequence[Run]) -> list[list[str]]:
    """A line for every agent and K: true val_bpb of the best measured at the end, over seeds."""
    groups: dict[tuple[str, int], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda r: (list(AGENTS).index(r.agent), r.k, r.seed)):
        groups[run.agent, run.k].append(run)
    yardstick = {run.seed: run.final for run in groups.get(("tpe", 1), [])}
    lines = []
    for (agent, k), group in groups.items():
        final = np.array([run.final for run in group])
        low, median, high = np.quantile(final, [0.25, 0.5, 0.75])
        ahead = np.array([run.final - yardstick[run.seed] for run in group if run.seed in yardstick])
        num_trials = sum(run.num_trials for run in group)
        lines.append(
            [
                agent,
                str(k),
                str(len(group)),
                f"{median:.6f}",
                f"{low:.6f} to {high:.6f}",
                _with_error(final, ".6f"),
                _with_error(ahead, "+.6f") if len(ahead) > 1 and (agent, k) != ("tpe", 1) else "",
                f"{num_trials / len(group):.0f}",
                f"{100 * sum(run.num_failed for run in group) / num_trials:.0f} %",
                f"{np.mean([run.path[-1][1] for run in group]):.1f}",
                f"{np.mean([run.thinking_s for run in group]):.0f}",
            ]
        )
    return lines


def _with_error(values: Floats, spec: str) -> str:
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{values.mean():{spec}} ± {error:.6f}"


def table(head: list[str], lines: list[list[str]], markdown: bool) -> str:
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    bar = " | " if markdown else "  "
    text = [bar.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in [head, *lines]]
    text.insert(1, bar.join("-" * w for w in widths))
    return "\n".join(f"| {line} |" if markdown else line.rstrip() for line in text)


def plot(path: Path, runs: Sequence[Run]) -> None:
    """The median search over GPU hours, a panel for each K, and over wall hours: the largest K, and tpe with K=1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ks = sorted({run.k for run in runs})
    agents = [agent for agent in AGENTS if any(run.agent == agent for run in runs)]
    figure, axes = plt.subplots(1, 1 + len(ks), figsize=(4 * (1 + len(ks)), 3.6), layout="constrained", sharey=True)
    panels = [(axes[i], 0, [(agent, k) for agent in agents], f"K={k}") for i, k in enumerate(ks)]
    panels += [(axes[-1], 1, [("tpe", ks[0]), *((agent, ks[-1]) for agent in agents)], "in wall time")]
    for axis, clock, shown, title in panels:
        for agent, k in shown:
            group = [run for run in runs if (run.agent, run.k) == (agent, k)]
            if group:
                end = max(run.path[-1][clock] for run in group)
                grid = np.geomspace(0.25, end, 200)
                median = np.median([_at([(p[clock], p[2]) for p in run.path], grid) for run in group], axis=0)
                sequential = clock == 1 and k == ks[0]
                axis.plot(
                    grid, median, "--" if sequential else "-", color=f"C{agents.index(agent)}", label=f"{agent}, K={k}"
                )
        axis.set(title=title, xlabel=("GPU hours", "wall hours")[clock], xscale="log", ylim=(0.974, 0.996))
        axis.legend(frameon=False, fontsize=7)
    axes[0].set_ylabel("true val_bpb of the best measured")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _at(path: list[tuple[float, float]], grid: Floats) -> Floats:
    spent, quality = np.array([(0.0, path[0][1]), *path]).T
    return quality[np.searchsorted(spent, grid, side="right") - 1]


def read_runs(path: Path) -> list[Run]:
    return [Run(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=Path, required=True, help="the real trials, csv.gz")
    parser.add_argument(
        "--truth", choices=("both", "trees", "smooth"), default="both", help="what the surrogate is made of"
    )
    parser.add_argument("--agents", default=",".join(AGENTS), help="default all")
    parser.add_argument("--ks", default="1,4,16")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--gpu-hours", type=float, default=24.0)
    parser.add_argument("--quick", action="store_true", help="4 seeds, K=16")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--runs", type=Path, help="a file that keeps runs; those in it are not played again")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache", help="where the fitted surrogate is kept")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--plot", type=Path, help="write a PNG here")
    args = parser.parse_args()
    try:
        surrogate = cached(args.trials, args.cache, args.truth)
    except ModuleNotFoundError as error:
        sys.exit(f"search.py: {error}; the surrogate is fitted with it: pip install scikit-learn")
    started = time.monotonic()
    print(f"{args.trials.name}: five folds")
    print(*surrogate.errors, sep="\n")
    print(f"noise of one trial at val_bpb 0.977: {surrogate.noise * (0.977 - FLOOR):.6f}", flush=True)
    ks, seeds = ([16], 4) if args.quick else ([int(k) for k in args.ks.split(",")], args.seeds)
    names = args.agents.split(",")
    runs = read_runs(args.runs) if args.runs else []
    known = {(run.agent, run.k, run.seed) for run in runs}
    wanted = [(agent, k, seed) for k in ks for seed in range(seeds) for agent in names]
    for run in play_all(surrogate, [(*w, args.gpu_hours) for w in wanted if w not in known], args.jobs):
        runs.append(run)
        if args.runs:
            with args.runs.open("a", encoding="utf-8") as file:
                line = {name: getattr(run, name) for name in Run.__slots__}
                file.write(json.dumps(line) + "\n")
    shown = [run for run in runs if (run.agent, run.k, run.seed) in set(wanted)]
    print(f"true val_bpb of the best measured after {args.gpu_hours:g} GPU hours; means with standard errors\n")
    print(table(HEAD, rows(shown), args.markdown))
    if args.plot:
        plot(args.plot, shown)
    print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
