"""benchmarks/scale.py in small: designed waves on two kinds of GPU, validated, the controller killed on the way."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client import Sandbox

SCALE = Path(__file__).parents[2] / "benchmarks" / "scale.py"

pytestmark = pytest.mark.usefixtures("empty_queue")


@pytest.fixture(scope="module")
def scale() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("benchmark_scale", SCALE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCALE.parent)  # as for a script
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def test_waves_on_two_kinds_of_gpu_survive_a_killed_controller(cluster: Sandbox, scale: Any, tmp_path: Path) -> None:
    options = argparse.Namespace(waves=3, schedule="async", seconds=(0.5, 1.0), no_kill=False)
    environment = {**os.environ, **cluster.settings_environment}
    run = scale.Run(tmp_path / "repository", environment, options)
    run.play()
    figures = dict(run.figures())
    assert figures["lost, run twice"] == "0, 0"
    assert figures["waves, candidates, trials"].startswith("3, 40, ")
    assert int(figures["kept"].split(":")[0]) > 1, "the surface has much to gain"
    before, _, after = figures["on the H200s, baseline to best"].partition(" -> ")
    assert float(after) < float(before) - 0.02
    assert (run.layout.root / "effects.csv").exists()
    run.picture(tmp_path / "scale.png")
    assert (tmp_path / "scale.png").stat().st_size > 10_000
