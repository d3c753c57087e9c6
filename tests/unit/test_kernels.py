"""The kernels: what they compute without a GPU, and on one that they compute the same."""

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from autoresearch_hpc import kernels
from autoresearch_hpc.kernels import attention
from autoresearch_hpc.kernels.attention import causal_attention, flash_attention
from autoresearch_hpc.kernels.loss import capped_cross_entropy
from autoresearch_hpc.kernels.mlp import relu_squared_mlp

CPU = torch.device("cpu")
GPU = torch.device("cuda")
ON_HOPPER = torch.cuda.is_available() and kernels.hopper(GPU)

needs_hopper = pytest.mark.skipif(not ON_HOPPER, reason="no Hopper GPU")


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def plain_mlp(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return (x @ up.T).clamp_min(0) ** 2 @ down.T


def plain_loss(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    log_probabilities = (15 * torch.tanh(x @ weight.T / 15)).log_softmax(-1)
    return -log_probabilities.gather(-1, targets[:, None]).mean()


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
    ahead = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(ahead >= 0) & (ahead < window)).transpose(1, 2)


def gradients(
    function: Callable[..., torch.Tensor], *tensors: torch.Tensor, device: torch.device, dtype: torch.dtype
) -> list[torch.Tensor]:
    """The result and the gradients of the tensors, the first of which has the type, on the CPU in float32."""
    moved = [t.to(device, dtype if i == 0 else torch.float32).requires_grad_() for i, t in enumerate(tensors)]
    out = function(*moved)
    out.backward(random(*out.shape, seed=9).to(out) if out.dim() else None)
    return [t.detach().float().cpu() for t in (out, *(m.grad for m in moved))]


def differences(ours: list[torch.Tensor], wanted: list[torch.Tensor]) -> list[float]:
    return [((a - b).norm() / b.norm()).item() for a, b in zip(ours, wanted, strict=True)]


def test_without_a_gpu_they_are_plain_pytorch() -> None:
    x, up, down = random(2, 5, 8), random(32, 8, seed=1), random(8, 32, seed=2)
    torch.testing.assert_close(relu_squared_mlp(x, up, down), plain_mlp(x, up, down))
    rows, targets = x.flatten(0, 1), torch.arange(10)
    torch.testing.assert_close(capped_cross_entropy(rows, up, targets, 15.0), plain_loss(rows, up, targets))
    q, k, v = (random(2, 6, 3, 4, seed=seed) for seed in range(3))
    ours = causal_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(ours, plain_attention(q, k, v, 6))


def test_the_log_says_what_computes() -> None:
    assert kernels.choices(CPU, 128) == (
        "attention: PyTorch (flash-attn-4 is not made for this device); MLP and loss: plain PyTorch"
    )


def test_triton_is_not_imported_where_it_is_not_needed() -> None:
    code = "import sys, train; print('triton' in sys.modules, 'flash_attn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        relu_squared_mlp(random(2, 8), random(32, 8), random(8, 24))


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize(("rows", "width", "inner"), [(4096, 512, 2048), (1000, 200, 808)])
def test_the_mlp_is_the_plain_one(rows: int, width: int, inner: int) -> None:
    tensors = random(rows, width), random(inner, width, seed=1, scale=0.05), random(width, inner, seed=2, scale=0.05)
    ours = gradients(relu_squared_mlp, *tensors, device=GPU, dtype=torch.bfloat16)
    assert max(differences(ours, gradients(plain_mlp, *tensors, device=CPU, dtype=torch.float32))) < 1e-2


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize(("rows", "vocabulary"), [(1000, 8192), (70_000, 300)])
def test_the_loss_is_the_plain_one(rows: int, vocabulary: int) -> None:
    targets = torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(3))
    x, weight = random(rows, 64), random(vocabulary, 64, seed=1)

    def fused(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return capped_cross_entropy(x, weight, targets.to(GPU), 15.0)

    ours = gradients(fused, x, weight, device=GPU, dtype=torch.bfloat16)
    wanted = gradients(lambda x, weight: plain_loss(x, weight, targets), x, weight, device=CPU, dtype=torch.float32)
    assert max(differences(ours, wanted)) < 1e-2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [300, 8192])
def test_the_scores_kernel_is_the_plain_cross_entropy(dtype: torch.dtype, vocabulary: int) -> None:
    from autoresearch_hpc.kernels.score import row_nats

    logits = (20 * random(1000, vocabulary)).to(dtype)
    targets = torch.randint(vocabulary, (1000,), generator=torch.Generator().manual_seed(3))
    wanted = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none").float()
    torch.testing.assert_close(row_nats(logits.to(GPU), targets.to(GPU)).cpu(), wanted, rtol=1e-5, atol=1e-5)
    for value in (math.nan, math.inf):
        logits[0, 5] = value
        assert not row_nats(logits.to(GPU), targets.to(GPU))[0].isfinite()


@pytest.mark.gpu
@needs_hopper
@pytest.mark.filterwarnings("ignore")  # of its compiler
@pytest.mark.parametrize("window", [100, 256, 512])
def test_flash_attention_sees_its_window(window: int) -> None:
    if reason := attention.unavailable(GPU, 128):
        pytest.skip(reason)
    tensors = [random(2, 512, 3, 128, seed=seed) for seed in range(3)]

    def fused(*tensors: torch.Tensor) -> torch.Tensor:
        return flash_attention(*(t.to(torch.bfloat16) for t in tensors), window)

    ours = gradients(fused, *tensors, device=GPU, dtype=torch.bfloat16)
    wanted = gradients(lambda q, k, v: plain_attention(q, k, v, window), *tensors, device=CPU, dtype=torch.float32)
    assert max(differences(ours, wanted)) < 1e-2


def test_a_variable_does_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(kernels, "_MAJOR", {})
    assert kernels.hopper(GPU)
    monkeypatch.setattr(kernels, "_MAJOR", {})
    monkeypatch.setenv(kernels.PLAIN_VARIABLE, "1")
    assert not kernels.hopper(GPU)
    assert not kernels.hopper(GPU), "asked once"
