"""What `decide=best` and `decide=significant` make of thousands of synthetic runs, as a table and a plot.

    python benchmarks/promotion.py --trials h200_trials.csv.gz               about 8 minutes; --quick for one
    python benchmarks/promotion.py --trials ... --markdown --plot docs/images/promotion.png

The runs' effects and noise are those of real trials of train.py's problem: a CSV with the columns method, seed, trial,
val_bpb, ok, wall_s and one a knob. Rounds are decided by the package's own code. A run spends the same GPU time under
either rule: baseline replicates, controls and confirmations are paid from the budget that proposals are paid from.
Scores are in bits per byte, gains positive; everything is seeded.
"""

import argparse
import csv
import gzip
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoresearch_hpc.promotion import (
    Difference,
    KnownNoise,
    Noise,
    Replicates,
    Sample,
    Significant,
    best,
    effect_prior,
    judge,
    pool,
    shrink,
)
from autoresearch_hpc.records import Direction

Floats = NDArray[np.float64]

WITHIN_SD = (1.1e-4, 5e-4)  # replicates on one node: a run's own is drawn from here
BETWEEN_SD = 5.2e-4  # between nodes
KNOWN = KnownNoise(sd=6e-4, df=4)
ADDITIVITY = 0.8  # of what near misses gain each, their combination gains so much
SMALL_GAINS = (3e-4, 3e-3)  # the sizes of gains that searches keep, luck included
PROPOSERS = ("Centaur", "CMA-ES", "TPE", "SMAC", "Karpathy Agent (14")  # methods that start from what was best so far
FIRST = 20  # a run's first trials look for a foothold; they are no neighbours of an incumbent
NEAR = 3.4e-3  # differences below this are a mixture of effect and luck, and are deconvolved
MAX_GAIN = 3e-3  # larger ones are escapes from a bad start


@dataclass(frozen=True, slots=True)
class World:
    """What proposals are like: a failure with chance `failing` at `failed_cost` of a trial, else one of `effects`."""

    name: str
    effects: Floats
    failing: float = 0.0
    failed_cost: float = 0.0
    noise_scale: float = 1.0
    packed: bool = False  # an array fills whole nodes of eight GPUs, of which the cluster has eight


@dataclass(slots=True)
class Tally:
    """One run's outcome; gains are true ones."""

    rounds: int = 0
    arrays: int = 0
    promotions: int = 0
    false: int = 0
    false_first: int = 0
    proposals: int = 0
    quality: float = 0.0
    best_seen: float = 0.0
    claims: list[tuple[float, float, float]] = field(default_factory=list)  # claimed, shrunk, true
    path: list[tuple[float, float]] = field(default_factory=list)  # (spent, true quality)


# the real trials


def read_world(path: Path) -> World:
    """The effects of real proposals on their incumbents, freed from luck. Raises OSError, KeyError."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"].startswith(PROPOSERS)]
    runs = defaultdict(list)
    for row in rows:
        runs[row["method"], row["seed"]].append(row)
    knobs = [name for name in rows[0] if name not in ("method", "seed", "trial", "val_bpb", "ok", "wall_s")]
    gains: list[float] = []
    luck: list[float] = []
    failed_s: list[float] = []
    ok_s: list[float] = []
    for run in runs.values():
        values = defaultdict(list)
        for row in run:
            if row["ok"] == "1":
                values[tuple(row[k] for k in knobs)].append(float(row["val_bpb"]))
        incumbent, score = None, np.inf
        for i, row in enumerate(run):
            settings, ok = tuple(row[k] for k in knobs), row["ok"] == "1"
            if i >= FIRST and settings != incumbent:
                (ok_s if ok else failed_s).append(float(row["wall_s"]))
                if ok:
                    gains.append(score - float(row["val_bpb"]))
            if ok and float(row["val_bpb"]) < score:
                incumbent, score = settings, float(row["val_bpb"])
                again = [v for v in values[settings] if v != score]
                if again and i >= FIRST:
                    luck.append(float(np.mean(again)) - score)
    return World(
        name="real",
        effects=_true_effects(np.array(gains) + np.mean(luck)),  # the incumbents' scores are the luckiest so far
        failing=len(failed_s) / (len(failed_s) + len(ok_s)),
        failed_cost=float(np.mean(failed_s) / np.mean(ok_s)),
    )


def _true_effects(gains: Floats, num: int = 100_000) -> Floats:
    """A sample of true effects: clear losses as observed, the rest by maximum likelihood over mixtures of effects."""
    gains = gains[gains < NEAR]
    near, far = gains[gains > -NEAR], gains[gains <= -NEAR]
    atoms = np.arange(-30, 31) * 1e-4
    sds = np.sqrt(2) * np.linspace(*WITHIN_SD, 9)  # the source ran each search on one node
    distance = near[:, None] - atoms
    likelihood = np.mean([np.exp(-((distance / sd) ** 2) / 2) / sd for sd in sds], axis=0)
    share = np.full(len(atoms), 1 / len(atoms))
    for _ in range(2000):
        weights = likelihood * share
        share = (weights / weights.sum(axis=1, keepdims=True)).mean(axis=0)
    rng = np.random.default_rng(0)
    num_near = round(num * len(near) / len(gains))
    return np.concatenate([rng.choice(atoms, num_near, p=share), rng.choice(far, num - num_near)]).clip(max=MAX_GAIN)


# one run


class Trials:
    """Draws scores: true quality plus the noise of a trial on whatever node it gets."""

    def __init__(self, world: World, seed: int) -> None:
        self._rng = np.random.default_rng((seed, 1))
        self._packed = world.packed
        self._within = self._rng.uniform(*WITHIN_SD) * world.noise_scale
        self._between = BETWEEN_SD * world.noise_scale
        self._nodes = self._rng.normal(0, self._between, 8)

    def array(self, qualities: list[float]) -> list[float]:
        """Scores of one array, lower is better."""
        n = len(qualities)
        if self._packed:
            order = self._rng.permutation(8)
            node = self._nodes[order[(np.arange(n) // 8) % 8]]
        else:
            node = self._rng.normal(0, self._between, n)
        noise = node + self._rng.normal(0, self._within, n)
        return [float(e - q) for e, q in zip(noise, qualities, strict=True)]


class Proposals:
    """The same ones for every rule: the j-th proposal of a run has the same effect on whatever is the incumbent."""

    def __init__(self, world: World, seed: int, budget: float) -> None:
        rng = np.random.default_rng((seed, 0))
        num = int(budget / (1 - world.failing * (1 - world.failed_cost)) * 1.5) + 64
        self._effects = rng.choice(world.effects, num).tolist()
        self._failed = (rng.random(num) < world.failing).tolist()
        self._next = 0

    def ask(self, k: int) -> list[float | None]:
        """Effects of k proposals, None for one that fails."""
        span = range(self._next, self._next + k)
        self._next += k
        return [None if self._failed[i] else self._effects[i] for i in span]


def run_best(world: World, k: int, budget: float, seed: int) -> Tally:
    trials, proposals, tally = Trials(world, seed), Proposals(world, seed, budget), Tally()
    incumbent = Sample(candidate="r00", values=tuple(trials.array([0.0])))
    spent = 1.0
    while spent + k <= budget:
        effects = proposals.ask(k)
        spent += _cost(effects, world)
        ok = [e for e in effects if e is not None]
        scores = trials.array([tally.quality + e for e in ok])
        samples = [Sample(candidate=f"c{i}", values=(s,)) for i, s in enumerate(scores)]
        winner = best(incumbent, samples, Direction.min)
        _see(tally, ok)
        if winner:
            new, effect = samples[int(winner[1:])], ok[int(winner[1:])]
            claim = incumbent.mean - new.mean
            tally.claims.append((claim, claim, effect))
            _promote(tally, effect)
            incumbent = new
        tally.rounds += 1
        tally.arrays += 1
        tally.path.append((spent, tally.quality))
    return tally


def run_significant(
    world: World, k: int, budget: float, seed: int, pooling: bool, known: KnownNoise | None = KNOWN
) -> Tally:
    """With `pooling` the agent spends a proposal a round on what the near misses so far come to together.

    `known` is the noise as configured, if it is.
    """
    rule, trials, proposals, tally = Significant(), Trials(world, seed), Proposals(world, seed, budget), Tally()
    incumbent = Sample(candidate="r00", values=(), fresh=tuple(trials.array([0.0] * rule.replicates)))
    seen: list[Difference] = []
    near_misses: list[float] = []
    spent = float(rule.replicates)
    while spent + k <= budget:
        effects = proposals.ask(k - 1 if pooling and near_misses else k)
        if len(effects) < k:
            together = near_misses[:3]
            del near_misses[:3]
            effects.append(sum(together) * (ADDITIVITY if len(together) > 1 else 1.0))
        ok = [e for e in effects if e is not None]
        controls = rule.controls_along(incumbent)
        spent += _cost(effects, world) + controls
        scores = trials.array([tally.quality + e for e in ok] + [tally.quality] * controls)
        samples = [Sample(candidate=f"c{i}", values=(s,)) for i, s in enumerate(scores[: len(ok)])]
        incumbent = replace(incumbent, fresh=incumbent.fresh + tuple(scores[len(ok) :]))
        _see(tally, ok)
        look = 0
        touched: set[int] = set()
        while True:
            tally.arrays += 1
            noise = _pool([incumbent, *(samples[i] for i in touched)], known)
            judged = judge(rule, look, noise, incumbent, samples, Direction.min)
            again = [int(name[1:]) for name in judged.again]
            cost = len(again) * judged.fresh + judged.controls
            if not again or spent + cost > budget:
                break
            spent += cost
            look += 1
            runs = [tally.quality + ok[i] for i in again for _ in range(judged.fresh)]
            scores = trials.array(runs + [tally.quality] * judged.controls)
            for j, i in enumerate(again):
                fresh = tuple(scores[j * judged.fresh : (j + 1) * judged.fresh])
                samples[i] = replace(samples[i], fresh=samples[i].fresh + fresh)
            incumbent = replace(incumbent, fresh=incumbent.fresh + tuple(scores[len(runs) :]))
            touched |= set(again)
        seen += [f.difference for f in judged.findings if f.difference]
        near_misses = [ok[int(name[1:])] for name in judged.pool] + near_misses
        rolled_back = [samples[i] for i in touched if samples[i].candidate != judged.promote]
        if judged.promote:
            i = int(judged.promote[1:])
            claim = judged.findings[i].difference
            assert claim
            shrunk = shrink(claim, effect_prior(seen, noise), noise)
            assert shrunk
            tally.claims.append((claim.gain, shrunk.gain, ok[i]))
            _promote(tally, ok[i])
            rolled_back.append(incumbent)
            incumbent = samples[i]
        measured = _pool(rolled_back, known)
        known = KnownNoise(sd=measured.sd, df=measured.df) if measured.known else None  # of all but the incumbent's
        tally.rounds += 1
        tally.path.append((spent, tally.quality))
    return tally


def _pool(samples: list[Sample], known: KnownNoise | None) -> Noise:
    return pool([Replicates(kind="", values=s.fresh) for s in samples], known)


def _cost(effects: list[float | None], world: World) -> float:
    return sum(world.failed_cost if e is None else 1.0 for e in effects)


def _see(tally: Tally, effects: list[float]) -> None:
    tally.proposals += len(effects)
    tally.best_seen = max([tally.best_seen, *(tally.quality + e for e in effects)])


def _promote(tally: Tally, effect: float) -> None:
    tally.promotions += 1
    tally.quality += effect
    if effect <= 0:
        tally.false += 1
        tally.false_first += tally.rounds == 0


# many runs, and what is said of them


RULES = {
    "best": run_best,
    "significant": partial(run_significant, pooling=False),
    "significant + pool": partial(run_significant, pooling=True),
    "significant, no noise configured": partial(run_significant, pooling=False, known=None),
}


def worlds(real: World) -> list[World]:
    """No effects at all; the real trials'; and those with more and smaller gains, where a strict rule costs most."""
    rng = np.random.default_rng(0)
    gains = np.exp(rng.uniform(*np.log(SMALL_GAINS), len(real.effects)))
    small = np.where(rng.random(len(gains)) < 0.03, gains, np.minimum(real.effects, 0))
    return [World("null", np.zeros(1)), real, replace(real, name="small gains", effects=small)]


def simulate(world: World, ks: list[int], runs: int, budget: float, seed: int) -> dict[tuple[int, str], list[Tally]]:
    rules = {name: run for name, run in RULES.items() if world.effects.any() or "pool" not in name}  # nothing to pool
    return {
        (k, name): [run(world, k, budget, seed + i) for i in range(runs)] for k in ks for name, run in rules.items()
    }


HEAD = ["proposals", "K", "rule", "rounds", "arrays", "false, round 1", "false/round", "false/run", "kept/run"]
HEAD += ["final gain", "against best", "regret", "claimed", "shrunk", "true"]


def rows(world: World, tallies: dict[tuple[int, str], list[Tally]]) -> list[list[str]]:
    """A line for every rule and K; gains in 1e-4 bits per byte, means over runs with their standard errors."""
    lines = []
    for (k, name), runs in tallies.items():
        rounds, num = sum(t.rounds for t in runs), len(runs)
        quality = 1e4 * np.array([t.quality for t in runs])
        ahead = quality - 1e4 * np.array([t.quality for t in tallies[k, "best"]])
        claims = 1e4 * np.array([claim for t in runs for claim in t.claims]).reshape(-1, 3).mean(axis=0)
        moves = world.name != "null"
        lines.append(
            [
                world.name,
                str(k),
                name,
                f"{rounds / num:.1f}",
                f"{np.mean([t.arrays for t in runs]):.1f}",
                f"{100 * np.mean([t.false_first for t in runs]):.1f} %",
                f"{100 * sum(t.false for t in runs) / rounds:.1f} %",
                f"{np.mean([t.false for t in runs]):.2f}",
                f"{np.mean([t.promotions for t in runs]):.2f}",
                f"{quality.mean():.1f} ± {_error(quality):.1f}" if moves else "0",
                f"{ahead.mean():+.1f} ± {_error(ahead):.1f}" if moves and name != "best" else "",
                f"{1e4 * np.mean([t.best_seen - t.quality for t in runs]):.1f}" if moves else "0",
                *(f"{claim:.1f}" for claim in claims),
            ]
        )
    return lines


def _error(values: Floats) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def table(head: list[str], lines: list[list[str]], markdown: bool) -> str:
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    bar = " | " if markdown else "  "
    text = [bar.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in [head, *lines]]
    text.insert(1, bar.join("-" * w for w in widths))
    return "\n".join(f"| {line} |" if markdown else line.rstrip() for line in text)


def robustness(runs: int, budget: float, seed: int) -> list[list[str]]:
    """False promotions under the null where the noise is not what the rule was told. `significant` alone."""
    null = World("null", np.zeros(1))
    cases = {
        "twice what is configured": replace(null, noise_scale=2.0),
        "half of it": replace(null, noise_scale=0.5),
        "arrays fill nodes of 8 GPUs": replace(null, packed=True),
    }
    lines = []
    for name, world in cases.items():
        for k in (1, 4, 16):
            tallies = [run_significant(world, k, budget, seed + i, False) for i in range(runs)]
            first = 100 * np.mean([t.false_first for t in tallies])
            each = 100 * sum(t.false for t in tallies) / sum(t.rounds for t in tallies)
            lines.append([name, str(k), f"{first:.1f} %", f"{each:.1f} %"])
    return lines


def plot(path: Path, null: dict[tuple[int, str], list[Tally]], real: dict[tuple[int, str], list[Tally]]) -> None:
    """Left, false promotions in a first round without any effect; the others, true quality over GPU time at K=1, 16."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    colours = dict(zip(RULES, ("#c44e52", "#4c72b0", "#55a868", "#8c8c8c"), strict=True))
    ks = sorted({k for k, _ in real})
    figure, axes = plt.subplots(1, 1 + len(ks), figsize=(4 * (1 + len(ks)), 3.6), layout="constrained")
    for i, name in enumerate(["best", "significant"]):
        share = [100 * np.mean([t.false_first for t in null[k, name]]) for k in ks]
        bars = axes[0].bar(np.arange(len(ks)) + 0.4 * i - 0.2, share, 0.4, label=name, color=colours[name])
        axes[0].bar_label(bars, fmt="%.1f", fontsize=8)
    axes[0].axhline(5, color="black", linewidth=0.8, linestyle=":")
    axes[0].set(title="nothing is better: false promotions", ylabel="% of first rounds", xticks=range(len(ks)))
    axes[0].set_xticklabels([f"K={k}" for k in ks])
    axes[0].legend(frameon=False)
    for axis, k in zip(axes[1:], ks, strict=True):
        for name in RULES:
            end = max(t.path[-1][0] for t in real[k, name])
            grid = np.linspace(0, end, 200)
            mean = np.mean([_at(t.path, grid) for t in real[k, name]], axis=0)
            axis.plot(grid, 1e3 * mean, label=name, color=colours[name])
        axis.set(
            title=f"real effects, K={k}", xlabel="GPU time spent, in trials", ylabel="true gain, 1e-3 bits per byte"
        )
        axis.set_ylim(0, None)
    axes[1].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _at(path: list[tuple[float, float]], grid: Floats) -> Floats:
    spent, quality = np.array([(0.0, 0.0), *path]).T
    return quality[np.searchsorted(spent, grid, side="right") - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=Path, required=True, help="the real trials, csv.gz")
    parser.add_argument("--runs", type=int, default=2000, help="synthetic runs of each kind")
    parser.add_argument("--budget", type=float, default=240, help="GPU time of a run, in trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tenth of the runs")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--plot", type=Path, help="write a PNG here")
    args = parser.parse_args()
    started, num, ks = time.monotonic(), args.runs // 10 if args.quick else args.runs, [1, 4, 16]
    real = read_world(args.trials)
    gains = real.effects[real.effects > 0]
    print(
        f"{args.trials.name}: {100 * real.failing:.0f} % of proposals fail at {100 * real.failed_cost:.0f} % of a "
        f"trial's cost; of the others {100 * len(gains) / len(real.effects):.1f} % gain, "
        f"{gains.mean():.6f} on average, "
        f"{100 * np.mean(np.abs(real.effects) < 3e-4):.0f} % are neutral, "
        f"{100 * np.mean(real.effects < -NEAR):.0f} % are worse by more than {NEAR}"
    )
    done = {world.name: (world, simulate(world, ks, num, args.budget, args.seed)) for world in worlds(real)}
    print(f"{num} runs of each kind with {args.budget:g} trials' GPU time; gains in 1e-4 bits per byte\n")
    print(table(HEAD, [line for world, tallies in done.values() for line in rows(world, tallies)], args.markdown))
    print("\nnull, significant: false promotions by what the noise really is\n")
    head = ["noise", "K", "false, round 1", "false/round"]
    print(table(head, robustness(num, args.budget, args.seed), args.markdown))
    if args.plot:
        plot(args.plot, done["null"][1], done[real.name][1])
    print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
