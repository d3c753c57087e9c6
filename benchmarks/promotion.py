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
    confirm,
    effect_prior,
    pool,
    screen,
    shrink,
)
from autoresearch_hpc.records import Direction

Floats = NDArray[np.float64]

WITHIN_SD = (1.1e-4, 5e-4)  # replicates on one node: a run's own is drawn from here
BETWEEN_SD = 5.2e-4  # between nodes
KNOWN = KnownNoise(sd=6e-4, df=4)
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
    gains, luck, failed_s, ok_s = [], [], [], []
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
                    luck.append(np.mean(again) - score)
    return World(
        name="real effects",
        effects=_true_effects(np.array(gains) + np.mean(luck)),  # the incumbents' scores are the luckiest so far
        failing=len(failed_s) / (len(failed_s) + len(ok_s)),
        failed_cost=float(np.mean(failed_s) / np.mean(ok_s)),
    )


def _true_effects(gains: Floats, num: int = 100_000) -> Floats:
    """A sample of true effects: clear losses as observed, the rest by maximum likelihood over mixtures of effects."""
    gains = gains[gains < NEAR]
    near, far = gains[gains > -NEAR], gains[gains <= -NEAR]
    atoms = np.arange(-30, 31) * 1e-4
    sd = np.sqrt(2) * np.mean(WITHIN_SD)  # the source ran each method on one node
    likelihood = np.exp(-(((near[:, None] - atoms) / sd) ** 2) / 2)
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
        tally.path.append((spent, tally.quality))
    return tally


def run_significant(world: World, k: int, budget: float, seed: int, rule: Significant) -> Tally:
    trials, proposals, tally = Trials(world, seed), Proposals(world, seed, budget), Tally()
    incumbent = Sample(candidate="r00", values=(), fresh=tuple(trials.array([0.0] * rule.replicates)))
    known = KNOWN  # the noise of all groups but the incumbent's
    seen: list[Difference] = []
    spent = float(rule.replicates)
    while spent + k <= budget:
        effects = proposals.ask(k)
        ok = [e for e in effects if e is not None]
        controls = rule.controls_along(incumbent)
        spent += _cost(effects, world) + controls
        scores = trials.array([tally.quality + e for e in ok] + [tally.quality] * controls)
        samples = [Sample(candidate=f"c{i}", values=(s,)) for i, s in enumerate(scores[: len(ok)])]
        incumbent = replace(incumbent, fresh=incumbent.fresh + tuple(scores[len(ok) :]))
        _see(tally, ok)
        noise = _pool([incumbent], known)
        stage = screen(rule, noise, incumbent, samples, Direction.min)
        winner, findings = stage.promote, stage.findings
        again = [int(name[1:]) for name in stage.confirm]
        if again and spent + len(again) * stage.fresh + stage.controls <= budget:
            spent += len(again) * stage.fresh + stage.controls
            runs = [tally.quality + ok[i] for i in again for _ in range(stage.fresh)]
            scores = trials.array(runs + [tally.quality] * stage.controls)
            for j, i in enumerate(again):
                samples[i] = replace(samples[i], fresh=tuple(scores[j * stage.fresh : (j + 1) * stage.fresh]))
            incumbent = replace(incumbent, fresh=incumbent.fresh + tuple(scores[len(runs) :]))
            noise = _pool([incumbent, *(samples[i] for i in again)], known)
            judged = confirm(rule, noise, incumbent, samples, Direction.min)
            winner, findings = judged.promote, judged.findings
        seen += [f.difference for f in findings if f.difference]
        rolled_back = [samples[i] for i in again if samples[i].candidate != winner]
        if winner:
            i = int(winner[1:])
            claim = findings[i].difference
            assert claim
            shrunk = shrink(claim, effect_prior(seen, noise), noise)
            assert shrunk
            tally.claims.append((claim.gain, shrunk.gain, ok[i]))
            _promote(tally, ok[i])
            rolled_back.append(incumbent)
            incumbent = samples[i]
        measured = _pool(rolled_back, known)
        known = KnownNoise(sd=measured.sd, df=measured.df)
        tally.rounds += 1
        tally.path.append((spent, tally.quality))
    return tally


def _pool(samples: list[Sample], known: KnownNoise) -> Noise:
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
