"""The evaluation on a GPU: logits through shared memory of the GPU, tolerances, a model that looks ahead a little."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("ROWS", "1024")
    found = importlib.util.spec_from_file_location("evaluate_gpu", ROOT / "benchmarks" / "evaluate_gpu.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_logits_cross_processes_unchanged(bench: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, checkpoint = bench.write_data(tmp_path / "data"), bench.write_checkpoint(tmp_path / "checkpoint.pt")
    plain = bench.plain(data, checkpoint, {})
    answer, _ = bench.trusted(tmp_path, data, checkpoint)
    assert answer["status"] == "OK", answer
    assert answer["value"] == pytest.approx(plain[0] / math.log(2) / 4, rel=1e-5)
    assert "host memory" not in capfd.readouterr().err


def test_a_little_look_ahead(bench: ModuleType, tmp_path: Path) -> None:
    source = (ROOT / "train.py").read_text()
    honest = "        return soft_cap(self.head(x))\n"
    assert honest in source
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text(
        source.replace(
            honest,
            honest.replace("return", "logits =") + "        ahead = idx.roll(-1, 1)[..., None]\n"
            "        return logits.scatter_add(2, ahead, torch.full_like(logits[..., :1], 0.2))\n",
        )
    )
    data, checkpoint = bench.write_data(tmp_path / "data"), bench.write_checkpoint(tmp_path / "checkpoint.pt")
    answer, _ = bench.trusted(tmp_path, data, checkpoint, tmp_path / "src")
    assert (answer["status"], answer.get("type")) == ("INVALID", "NotCausal")
