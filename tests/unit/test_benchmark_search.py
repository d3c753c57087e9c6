"""benchmarks/search.py on synthetic trials: it learns them, keeps the books, and tells good agents from random."""

import csv
import gzip
import importlib.util
import random
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def search() -> Iterator[ModuleType]:
    found = importlib.util.spec_from_file_location("benchmark_search", ROOT / "benchmarks" / "search.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["benchmark_search"] = module
    found.loader.exec_module(module)
    yield module
    del sys.modules["benchmark_search"]


def score(knobs: dict[str, Any]) -> float:
    rate, share = np.log(float(knobs["MATRIX_LR"]) / 0.02), float(knobs["WARMDOWN_RATIO"]) - 0.6
    return float(0.97 + 0.02 * rate**2 + 0.1 * share**2 + 0.002 * abs(float(knobs["DEPTH"]) - 9))


def fits(knobs: dict[str, Any]) -> bool:
    return float(knobs["DEPTH"]) * float(knobs["DEVICE_BATCH_SIZE"]) < 1500


@pytest.fixture
def surrogate(search: ModuleType) -> Any:
    """The synthetic truth itself, by the columns of `features`: no models, no scikit-learn."""
    names = [name for name in search.BASELINE if name != "WINDOW_PATTERN"]
    logs = set(search.LOGS)

    def knobs(row: Any) -> dict[str, Any]:
        return {name: 2**v if name in logs else v for name, v in zip(names, row, strict=False)}

    return search.Surrogate(
        (lambda rows: np.log([score(knobs(row)) - search.FLOOR for row in rows]),),
        lambda rows: np.array([1.0 if fits(knobs(row)) else -1.0 for row in rows]),
        0.01,
        (),
    )


@pytest.fixture
def trials(search: ModuleType, tmp_path: Path) -> Path:
    """250 random settings, some of them run twice."""
    rng, space = random.Random(0), search.space()
    settings = [space.sample(rng) for _ in range(250)]
    path = tmp_path / "trials of last week.csv.gz"
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "seed", "trial", "val_bpb", "ok", "wall_s", *search.BASELINE])
        for i, knobs in enumerate([*settings, *settings[:30]]):
            ok = fits(knobs)
            value = search.FLOOR + (score(knobs) - search.FLOOR) * np.exp(rng.gauss(0, 0.02))
            writer.writerow(["m", i % 7, i, value if ok else "", int(ok), 300 if ok else 30, *knobs.values()])
    return path


def test_a_good_agent_is_told_from_random(search: ModuleType, surrogate: Any) -> None:
    def final(agent: str) -> float:
        return statistics.mean(search.play(surrogate, agent, 8, seed, 4.0).final for seed in range(3))

    assert final("gp") < final("random") - 0.004


def test_the_books_are_kept(search: ModuleType, surrogate: Any) -> None:
    run = search.play(surrogate, "random", 4, 0, 2.0)
    gpu_s, wall_s = 3600 * run.path[-1][0], 3600 * run.path[-1][1]
    assert 2 * 3600 - 300 < gpu_s <= 2 * 3600
    assert gpu_s == pytest.approx(300 * (run.num_trials - run.num_failed) + 30 * run.num_failed)
    assert 0 < run.num_failed < run.num_trials
    assert len(run.path) - 1 >= (run.num_trials - 1) / 4
    assert gpu_s / 4 < wall_s <= 300 * len(run.path)
    assert run.path[0][2] == pytest.approx(score(dict(search.BASELINE)))
    again = search.play(surrogate, "random", 4, 0, 2.0)
    assert (again.path, again.num_trials) == (run.path, run.num_trials)
    assert search.play(surrogate, "random", 4, 1, 2.0).path != run.path


def test_a_table_has_a_line_for_each_agent_and_k(search: ModuleType) -> None:
    def run(agent: str, k: int, seed: int, value: float) -> Any:
        return search.Run(agent=agent, k=k, seed=seed, num_trials=10, num_failed=1, path=[(24.0, 24.0 / k, value)])

    runs = [run("gp", 16, s, 0.970 + s / 1000) for s in range(3)] + [
        run("tpe", 1, s, 0.975 + s / 1000) for s in range(3)
    ]
    sequential, wide = search.rows(runs)
    assert sequential[:4] == ["tpe", "1", "3", "0.976000"]
    assert wide[:5] == ["gp", "16", "3", "0.971000", "0.970500 to 0.971500"]
    assert wide[6].startswith("-0.005000 ± 0.000000")
    assert wide[8:10] == ["10 %", "1.5"]


def test_the_surrogate_learns_the_trials(
    search: ModuleType, trials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn", reason="only benchmarks/search.py needs scikit-learn")
    read = search.read_trials(trials)
    assert (len(read.settings), len(set(read.setting_of)), len(set(read.search_of))) == (280, 250, 7)
    learned = search.fit(read, num_trees=40)
    assert len(learned.errors) == 2
    rng, space = random.Random(1), search.space()
    unseen = [space.sample(rng) for _ in range(300)]
    truth = learned.truth(unseen)
    assert np.mean(np.isnan(truth) != [fits(knobs) for knobs in unseen]) > 0.95
    good = ~np.isnan(truth)
    assert np.corrcoef(truth[good], np.array([score(knobs) for knobs in unseen])[good])[0, 1] > 0.8
    assert 0.01 < learned.noise < 0.03
    monkeypatch.setattr(search, "fit", lambda *_: learned)
    kept = search.cached(trials, tmp_path / "cache", "both")
    monkeypatch.setattr(search, "fit", None)  # what is kept is not fitted again
    np.testing.assert_array_equal(search.cached(trials, tmp_path / "cache", "both").truth(unseen), truth)
    np.testing.assert_array_equal(kept.truth(unseen), truth)


def test_flat_trees_are_the_trees(search: ModuleType) -> None:
    ensemble = pytest.importorskip("sklearn.ensemble", reason="only benchmarks/search.py needs scikit-learn")
    rng = np.random.default_rng(0)
    rows = rng.random((200, 5))
    target = rows[:, 0] + rows[:, 1] ** 2
    model = ensemble.GradientBoostingRegressor(n_estimators=20, random_state=0).fit(rows, target)
    np.testing.assert_allclose(search.Forest.flat(model, rows)(rows), model.predict(rows), atol=1e-9)
    classes = ensemble.GradientBoostingClassifier(n_estimators=20, random_state=0).fit(rows, target > 1)
    np.testing.assert_allclose(search.Forest.flat(classes, rows)(rows), classes.decision_function(rows), atol=1e-9)


def test_without_scikit_learn_it_says_so(
    search: ModuleType, trials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sklearn", "sklearn.ensemble"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "argv", ["search.py", "--trials", str(trials), "--cache", str(tmp_path)])
    with pytest.raises(SystemExit, match="pip install scikit-learn"):
        search.main()
