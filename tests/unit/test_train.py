"""train.py: the knobs' defaults, the model's size and causality, the optimizers, a whole training by hand."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from autoresearch_hpc.harness import Meta, standalone

torch.set_num_threads(1)

SCRIPT = Path(__file__).parents[2] / "train.py"
META = Meta(vocab_size=8192, seq_len=2048, bos_id=0)
TINY = Meta(vocab_size=300, seq_len=16, bos_id=0)
TINY_KNOBS = {
    "DEPTH": 3,
    "ASPECT_RATIO": 8,
    "HEAD_DIM": 8,
    "DEVICE_BATCH_SIZE": 4,
    "TOTAL_BATCH_SIZE": 128,
}


@pytest.fixture
def load() -> Callable[..., ModuleType]:
    """A fresh train.py, with other knobs."""

    def load(**knobs: object) -> ModuleType:
        found = importlib.util.spec_from_file_location("train_under_test", SCRIPT)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        for name, value in knobs.items():
            assert hasattr(module, name)
            setattr(module, name, value)
        return module

    return load


@torch.no_grad()
def scramble(model: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter random: the initial model passes its input through."""
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=random) / max(parameter.shape[-1], 1) ** 0.5)


def test_the_knobs_have_the_names_and_defaults_that_searches_expect(load: Callable[..., ModuleType]) -> None:
    train = load()
    expected = {
        "ASPECT_RATIO": 64,
        "HEAD_DIM": 128,
        "WINDOW_PATTERN": "SSSL",
        "TOTAL_BATCH_SIZE": 524_288,
        "EMBEDDING_LR": 0.6,
        "UNEMBEDDING_LR": 0.004,
        "MATRIX_LR": 0.04,
        "SCALAR_LR": 0.5,
        "WEIGHT_DECAY": 0.2,
        "ADAM_BETAS": (0.8, 0.95),
        "WARMUP_RATIO": 0.0,
        "WARMDOWN_RATIO": 0.5,
        "FINAL_LR_FRAC": 0.0,
        "DEPTH": 8,
        "DEVICE_BATCH_SIZE": 128,
    }
    assert {name: getattr(train, name) for name in expected} == expected
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    for name in expected:  # one line each, with its meaning behind it
        assert sum(bool(re.match(rf"{name} = .+  # .+", line)) for line in lines) == 1


def test_importing_it_does_nothing(tmp_path: Path) -> None:
    code = "import sys, train; print('dynamo', 'torch._dynamo' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(SCRIPT.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("dynamo False\n", "")  # the compiler's import alone takes a second
    assert list(tmp_path.iterdir()) == []


def test_the_default_model_has_50_million_parameters(load: Callable[..., ModuleType]) -> None:
    train = load()
    with torch.device("meta"):
        model = train.build_model(META)
    table = 8192 * 512
    matrices = 8 * (4 * 512 * 512 + 2 * 512 * 2048)
    parts = {
        "token embedding": model.embedding.weight.numel(),
        "value embeddings": sum(p.numel() for p in model.value_embeddings.parameters()),
        "head": model.head.weight.numel(),
        "layers": sum(p.numel() for p in model.blocks.parameters()),
        "scalars": model.residual_scale.numel() + model.input_scale.numel(),
    }
    assert parts == {
        "token embedding": table,  # 4.19 M
        "value embeddings": 4 * table,  # 16.78 M, in layers 1, 3, 5 and 7
        "head": table,  # 4.19 M
        "layers": matrices + 4 * 32 * 4,  # 25.17 M, and the gates of the value embeddings
        "scalars": 16,
    }
    assert sum(p.numel() for p in model.parameters()) == sum(parts.values()) == 50_332_176
    assert sorted(model.value_embeddings) == ["1", "3", "5", "7"]
    assert model.flops_per_token() == 6 * (parts["layers"] + table) + 12 * 512 * (6 * 1024 + 2 * 2048)


@pytest.mark.parametrize(
    ("depth", "ratio", "head_dim", "width"), [(8, 64, 128, 512), (8, 56, 128, 512), (9, 57, 128, 640), (1, 1, 64, 64)]
)
def test_the_width_is_rounded_up_to_whole_heads(
    load: Callable[..., ModuleType], depth: int, ratio: int, head_dim: int, width: int
) -> None:
    assert load(DEPTH=depth, ASPECT_RATIO=ratio, HEAD_DIM=head_dim).model_width() == width


@pytest.mark.parametrize(
    ("pattern", "depth", "windows"),
    [("SSSL", 8, "SSSLSSSL"), ("SSSL", 6, "SSSLSL"), ("S", 3, "SSL"), ("L", 2, "LL"), ("SL", 1, "L")],
)
def test_the_window_pattern_repeats_and_the_last_layer_sees_all(
    load: Callable[..., ModuleType], pattern: str, depth: int, windows: str
) -> None:
    spans = load(WINDOW_PATTERN=pattern, DEPTH=depth).layer_windows(2048)
    assert spans == [{"S": 1024, "L": 2048}[letter] for letter in windows]


def test_logits_depend_on_what_came_before_and_on_nothing_later(load: Callable[..., ModuleType]) -> None:
    model = load(**TINY_KNOBS).build_model(TINY)
    scramble(model)
    idx = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(0))
    changed = idx.clone()
    changed[:, 9] = (idx[:, 9] + 1) % 300
    with torch.no_grad():
        before, after = model(idx), model(changed)
    assert before.shape == (2, 16, 300)
    assert before.dtype == torch.float32
    assert torch.equal(before[:, :9], after[:, :9])
    assert all(not torch.equal(before[:, t], after[:, t]) for t in range(9, 16))
    assert before.abs().max() <= 15


def test_a_window_sees_its_own_token_and_those_just_before(load: Callable[..., ModuleType]) -> None:
    train = load(**{**TINY_KNOBS, "WINDOW_PATTERN": "S"})
    model = train.build_model(TINY)
    scramble(model)
    assert sorted(model.masks) == [8]
    rows = torch.arange(16)
    for query, mask in enumerate(model.masks[8]):
        assert rows[mask].tolist() == list(range(max(0, query - 7), query + 1))
    attention = model.blocks[0].attention
    q, k, v = torch.randn(3, 1, 16, 3, 8, generator=torch.Generator().manual_seed(0)).unbind()
    far = v.clone()
    far[:, 3] += 1
    difference = attention.attend(q, k, far, model.masks[8]) - attention.attend(q, k, v, model.masks[8])
    seen = difference.abs().amax(dim=(0, 2, 3)) > 0
    assert seen.nonzero().flatten().tolist() == list(range(3, 11))


def test_the_loss_is_the_mean_cross_entropy_of_the_logits(load: Callable[..., ModuleType]) -> None:
    model = load(**TINY_KNOBS).build_model(TINY)
    scramble(model)
    idx = torch.randint(300, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_probabilities = model(idx[:, :-1]).double().log_softmax(-1)
        loss = model(idx[:, :-1], idx[:, 1:])
    wanted = -log_probabilities.gather(-1, idx[:, 1:, None]).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_untrained_model_knows_nothing(load: Callable[..., ModuleType]) -> None:
    model = load(**TINY_KNOBS).build_model(TINY)
    idx = torch.randint(300, (4, 17), generator=torch.Generator().manual_seed(0))
    assert model(idx[:, :-1], idx[:, 1:]).item() == pytest.approx(math.log(300), abs=0.02)


def test_rows_of_another_length_are_refused(load: Callable[..., ModuleType]) -> None:
    model = load(**TINY_KNOBS).build_model(TINY)
    with pytest.raises(ValueError, match="rows of 8 tokens, the model was built for 16"):
        model(torch.zeros((1, 8), dtype=torch.int64))


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 64, 16), (2, 16, 64), (1, 4, 32)])
def test_orthogonalized_matrices_have_singular_values_near_one(
    load: Callable[..., ModuleType], shape: tuple[int, ...]
) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    out = load().orthogonalize(matrices)
    assert out.shape == shape
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.75
    assert values.max() < 1.25
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(out.flatten(1), (u @ v).flatten(1))
    assert cosine.min() > 0.98  # the nearest semi-orthogonal matrix, not just any


def test_muon_equalizes_rows_at_unchanged_norm_and_decays_only_with_the_update(
    load: Callable[..., ModuleType],
) -> None:
    train = load()
    random = torch.Generator().manual_seed(0)
    grad, param = torch.randn((2, 48, 16), generator=random), torch.randn((2, 48, 16), generator=random)
    rates = torch.tensor([0.1, 0.0, 0.95, 0.0])
    plain = param.clone()
    train.muon_update(plain, grad, torch.zeros_like(grad), torch.zeros((2, 48, 1)), rates)
    step = (param - plain) / 0.1
    rows = step.square().mean(dim=-1).sqrt()
    torch.testing.assert_close(rows, rows.mean(dim=1, keepdim=True).expand_as(rows), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(step.norm(dim=(1, 2)), train.orthogonalize(grad).norm(dim=(1, 2)), rtol=1e-4, atol=1e-4)
    decayed = param.clone()
    rates[3] = 0.5
    train.muon_update(decayed, grad, torch.zeros_like(grad), torch.zeros((2, 48, 1)), rates)
    agree = step * param >= 0
    wanted = torch.where(agree, plain - 0.1 * 0.5 * param, plain)
    torch.testing.assert_close(decayed, wanted)
    assert agree.any()
    assert not agree.all()


def test_adamw_is_torchs(load: Callable[..., ModuleType]) -> None:
    train = load()
    random = torch.Generator().manual_seed(0)
    ours = torch.randn((5, 7), generator=random)
    theirs = torch.nn.Parameter(ours.clone())
    reference = torch.optim.AdamW([theirs], lr=0.03, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0)
    average, square = torch.zeros_like(ours), torch.zeros_like(ours)
    for count in range(1, 6):
        theirs.grad = torch.randn((5, 7), generator=random)
        train.adamw_update(ours, theirs.grad, average, square, torch.tensor([0.03, 0.8, 0.95, count]))
        reference.step()
    torch.testing.assert_close(ours, theirs.detach())


def test_updates_leave_nothing_to_the_host(load: Callable[..., ModuleType]) -> None:
    """For what they would compute there, each trial would wait for a C++ compiler."""
    train = load()

    def computed_on(update: Callable[..., None], *tensors: torch.Tensor) -> set[str]:
        graph = make_fx(update, decomposition_table=select_decomp_table())(*tensors).graph
        values = [node.meta.get("val") for node in graph.nodes if node.op == "call_function"]
        return {value.device.type for value in values if isinstance(value, torch.Tensor)}

    with FakeTensorMode(), torch.device("cuda"):  # no GPU is needed to tell
        matrices, energy, rates = torch.empty(2, 64, 32), torch.empty(2, 64, 1), torch.empty(4)
        assert computed_on(train.muon_update, matrices, matrices, matrices, energy, rates) == {"cuda"}
        assert computed_on(train.adamw_update, *[matrices] * 4, rates) == {"cuda"}
        assert computed_on(train.adamw_update, *[matrices] * 4, rates.cpu()) == {"cuda", "cpu"}


def test_every_parameter_is_in_exactly_one_group(load: Callable[..., ModuleType]) -> None:
    train = load(**TINY_KNOBS)
    model = train.build_model(TINY)
    optimizers = train.Optimizers(model)
    grouped = [p for params, _, _ in optimizers.adam_groups for p in params]
    grouped += [p for params in optimizers.muon_groups for p in params]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(model.parameters()))


def test_the_learning_rate_follows_the_clock(load: Callable[..., ModuleType]) -> None:
    train = load(WARMUP_RATIO=0.1, WARMDOWN_RATIO=0.5, FINAL_LR_FRAC=0.2)
    scales = [train.lr_scale_at(progress) for progress in (0.0, 0.05, 0.1, 0.5, 0.75, 1.0)]
    assert scales == [pytest.approx(value) for value in (0.0, 0.5, 1.0, 1.0, 0.6, 0.2)]
    assert load().lr_scale_at(0.0) == 1.0
    assert load(WARMDOWN_RATIO=0.0).lr_scale_at(1.0) == 1.0


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"TOTAL_BATCH_SIZE": 100}, "TOTAL_BATCH_SIZE = 100 is not a multiple of DEVICE_BATCH_SIZE"),
        ({"TOTAL_BATCH_SIZE": 32}, r"DEVICE_BATCH_SIZE \* sequence length = 4 \* 16 = 64"),
        ({"HEAD_DIM": 7}, "HEAD_DIM = 7 is odd"),
        ({"WINDOW_PATTERN": "SXL"}, "WINDOW_PATTERN = 'SXL'; use the letters L and S"),
        ({"WINDOW_PATTERN": ""}, "WINDOW_PATTERN = ''"),
    ],
)
def test_impossible_knobs_end_the_script_with_one_line(
    load: Callable[..., ModuleType],
    knobs: dict[str, object],
    words: str,
    tiny_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AUTORESEARCH_SESSION", raising=False)
    monkeypatch.setenv("AUTORESEARCH_DATA", str(tiny_dataset))
    with pytest.raises(SystemExit, match=f"^train.py: .*{words}") as caught:
        load(**{**TINY_KNOBS, **knobs}).main()
    assert "\n" not in str(caught.value)


@pytest.fixture
def session(tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A worker's session of a second and a half; returns where its checkpoint will be."""
    checkpoint = tmp_path / "trial" / "checkpoint.pt"
    description = {
        "schema": 1, "data_dir": str(tiny_dataset), "seed": 0, "train_s": 1.5, "device": "cpu",
        "checkpoint": str(checkpoint), "num_threads": 1,
    }  # fmt: skip
    path = tmp_path / "session.json"
    path.write_text(json.dumps(description), encoding="utf-8")
    monkeypatch.setenv("AUTORESEARCH_SESSION", str(path))
    return checkpoint


class Pipe:
    """The worker's end of the events' pipe."""

    def __init__(self) -> None:
        self._read, self.write = os.pipe()

    def events(self) -> list[dict[str, object]]:
        os.close(self.write)
        with os.fdopen(self._read) as pipe:
            return [json.loads(line) for line in pipe]


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Pipe:
    pipe = Pipe()
    monkeypatch.setenv("AUTORESEARCH_EVENTS_FD", str(pipe.write))
    return pipe


def test_a_session_trains_and_says_so(
    load: Callable[..., ModuleType], session: Path, pipe: Pipe, capsys: pytest.CaptureFixture[str]
) -> None:
    train = load(**TINY_KNOBS)
    train.main()
    events = pipe.events()
    assert [event["event"] for event in events] == ["warmup", "clock", "stopped", "saved", "summary"]
    output = capsys.readouterr().out
    losses = [float(text) for text in re.findall(r"^step=\d+ loss=(\S+) .* step_ms=\d", output, flags=re.M)]
    saved = events[-2]
    assert saved["steps"] == len(losses) > 3
    assert saved["tokens"] == 128 * len(losses)
    assert losses[0] == pytest.approx(math.log(300), abs=0.05)
    assert min(losses) < losses[0] - 0.5
    assert "val_bpb" not in output
    train.build_model(TINY).load_state_dict(torch.load(session, weights_only=True))


def test_the_warm_up_leaves_no_trace(load: Callable[..., ModuleType], session: Path) -> None:
    train = load(**TINY_KNOBS)
    opened = train.Session.open()
    model = train.build_model(opened.meta)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train.warm_up(opened, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_that_is_not_finite_ends_the_training(
    load: Callable[..., ModuleType], session: Path, pipe: Pipe
) -> None:
    train = load(**TINY_KNOBS, EMBEDDING_LR=float("nan"))
    with pytest.raises(SystemExit, match="the loss is not finite at step 2"):
        train.main()
    assert pipe.events()[-1] == {"event": "diverged", "step": 2}
    assert not session.exists()


def test_by_hand_it_prints_the_familiar_block(tiny_dataset: Path, tmp_path: Path) -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    for name, value in TINY_KNOBS.items():
        text, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.M)
        assert count == 1
    folder = tmp_path / "my 'own' copy"
    folder.mkdir()
    (folder / "train.py").write_text(text, encoding="utf-8")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith("AUTORESEARCH_")}
    env |= {"AUTORESEARCH_DATA": str(tiny_dataset), "AUTORESEARCH_TRAIN_S": "1", "OMP_NUM_THREADS": "1"}
    env |= {"TMPDIR": str(scratch)}
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    gpu = torch.cuda.is_available()
    assert done.stderr == ("" if gpu else f"{standalone.CPU_NOTE}\n")
    names, values = zip(*(line.split(":") for line in done.stdout.split("---\n")[1].splitlines()), strict=True)
    assert names == (
        "val_bpb",
        "training_seconds",
        "total_seconds",
        "peak_vram_mb",
        "mfu_percent",
        "total_tokens_M",
        "num_steps",
        "num_params_M",
        "depth",
    )
    assert re.fullmatch(r" +\d\.\d{6}", values[0])
    assert float(values[0]) < math.log2(300) / 2.5 * 0.9  # 2.5 bytes a token: below a guess
    assert 1.0 <= float(values[1]) < float(values[2])
    assert list(scratch.glob("autoresearch-*")) == []


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own imports
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_gpu_and_cpu_agree(load: Callable[..., ModuleType]) -> None:
    train = load(DEPTH=3, ASPECT_RATIO=32, HEAD_DIM=32, WINDOW_PATTERN="S")
    meta = Meta(vocab_size=300, seq_len=256, bos_id=0)
    model = train.build_model(meta)
    scramble(model)
    idx = torch.randint(300, (2, 256), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cpu = model(idx)
        gpu = model.cuda()(idx.cuda()).cpu()
    assert ((gpu - cpu).norm() / cpu.norm()).item() < 2e-2
