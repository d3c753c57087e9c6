"""A small GPT, its optimizers and its training loop: the one file that a search edits.

It reads from top to bottom: knobs, model, optimizers, schedule, training. The harness gives it a device, a clock and
batches of the training split; it saves a checkpoint. What it may not do is score itself: a separate process calls
`build_model(meta)`, loads the checkpoint, and computes bits per byte from the logits that `forward(idx)` returns.

    python train.py        trains for five minutes on the data set under ./data and prints a summary
"""

import functools
import math
import sys
import time
from collections import deque
from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F

from autoresearch_hpc import kernels
from autoresearch_hpc.errors import AutoresearchError
from autoresearch_hpc.harness import Meta, Session
from autoresearch_hpc.kernels.attention import causal_attention, flash_attention, unavailable
from autoresearch_hpc.kernels.loss import capped_cross_entropy
from autoresearch_hpc.kernels.mlp import relu_squared_mlp

# ----------------------------------------------------------------------------------------------------------------------
# Knobs: plain values on one line each, so that a search can rewrite them
# ----------------------------------------------------------------------------------------------------------------------

# Model
ASPECT_RATIO = 64  # model width per layer: width = DEPTH * ASPECT_RATIO, rounded up to a multiple of HEAD_DIM
HEAD_DIM = 128  # width of one attention head, even
WINDOW_PATTERN = "SSSL"  # attention windows, repeated over the layers: L full context, S half; the last layer is L
DEPTH = 8  # transformer layers

# Optimization
TOTAL_BATCH_SIZE = 2**19  # tokens in one optimizer step, a multiple of DEVICE_BATCH_SIZE * sequence length
EMBEDDING_LR = 0.6  # token and value embeddings (AdamW)
UNEMBEDDING_LR = 0.004  # output head (AdamW)
MATRIX_LR = 0.04  # matrices of the layers (Muon)
SCALAR_LR = 0.5  # residual and input scalars (AdamW)
WEIGHT_DECAY = 0.2  # cautious weight decay of the matrices, falling to 0 over the run
ADAM_BETAS = (0.8, 0.95)  # AdamW's two averages
WARMUP_RATIO = 0.0  # share of the training time in which the learning rates rise from 0
WARMDOWN_RATIO = 0.5  # share of the training time in which they fall
FINAL_LR_FRAC = 0.0  # where they end, as a share of their peak

# Hardware
DEVICE_BATCH_SIZE = 128  # rows in one forward pass; halve it where memory runs out
COMPILE = True  # torch.compile on GPUs: up to a minute before the clock starts, twice the speed after

# ----------------------------------------------------------------------------------------------------------------------
# Model: rotary positions, QK-norm, ReLU² MLP, gated value embeddings, scalars on the residual and on the input
# ----------------------------------------------------------------------------------------------------------------------

LOGIT_CAP = 15.0  # of logits, in the loss and in the evaluation alike
ROTARY_BASE = 10_000.0
FLASH = "flash"  # in place of a mask: flash-attn-4 counts the window itself
GATE_CHANNELS = 32  # the value gate reads this many channels of the layer's input


@functools.cache
def compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return torch.compile(function, dynamic=False)


def fused(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Makes steps that pass over memory one pass: in training with all else, and by itself in the evaluation, for which
    compiling the whole model takes longer than it saves."""

    @functools.wraps(function)
    def call(x: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        alone = COMPILE and x.is_cuda and not torch.compiler.is_compiling()
        return (compiled(function) if alone else function)(x, *more)

    return call


@fused
def norm(x: torch.Tensor) -> torch.Tensor:
    """RMS norm over the last axis, without parameters."""
    return F.rms_norm(x, (x.size(-1),)).to(x.dtype)


@fused
def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """(B, T, heads, HEAD_DIM) in and out: pairs of channels turned by the angles of their positions, then RMS norm."""
    swapped = x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)  # faster than cutting x in two and joining it again
    return norm(x * cos + swapped * sin)


@fused
def mix(x: torch.Tensor, first: torch.Tensor, residual_scale: torch.Tensor, input_scale: torch.Tensor) -> torch.Tensor:
    return residual_scale.to(x.dtype) * x + input_scale.to(x.dtype) * first


@fused
def soft_cap(logits: torch.Tensor) -> torch.Tensor:
    return LOGIT_CAP * torch.tanh(logits.float() / LOGIT_CAP)


class Linear(nn.Linear):
    """A matrix product in the type of its input: weights stay float32. Autocast would keep graphs out of the cache."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def model_width() -> int:
    """Model width: DEPTH * ASPECT_RATIO rounded up to whole heads."""
    return -(-DEPTH * ASPECT_RATIO // HEAD_DIM) * HEAD_DIM


def layer_windows(seq_len: int) -> list[int]:
    """How many tokens back each layer sees, its own included. The last layer always sees all."""
    spans = {"L": seq_len, "S": seq_len // 2}
    pattern = [spans[WINDOW_PATTERN[i % len(WINDOW_PATTERN)]] for i in range(DEPTH)]
    return [*pattern[:-1], seq_len]


def has_value_embedding(layer: int) -> bool:
    """Every second layer, counted so that the last has one."""
    return (DEPTH - 1 - layer) % 2 == 0


def visible_within(window: int) -> Callable[..., torch.Tensor]:
    """Flex attention's question, whether query q of any batch b and head h sees key k."""
    return lambda b, h, q, k: (q >= k) & (q - k < window)


class Rotary(nn.Module):
    """Rotates pairs of channels, one from each half of a head, by an angle that grows with the position, and norms."""

    def __init__(self, seq_len: int) -> None:
        super().__init__()
        frequency = ROTARY_BASE ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float32) / HEAD_DIM)
        angle = torch.outer(torch.arange(seq_len, dtype=torch.float32), frequency)
        cos, sin = angle.cos()[:, None, :], angle.sin()[:, None, :]  # (T, 1, HEAD_DIM / 2)
        self.register_buffer("cos", torch.cat((cos, cos), dim=-1), persistent=False)
        self.register_buffer("sin", torch.cat((sin, -sin), dim=-1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, heads, HEAD_DIM) in and out."""
        cos, sin = self.cos[: x.size(1)].to(x.dtype), self.sin[: x.size(1)].to(x.dtype)
        return rotate(x, cos, sin)


class Attention(nn.Module):
    def __init__(self, width: int, layer: int, window: int) -> None:
        super().__init__()
        self.num_heads = width // HEAD_DIM
        self.window = window
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        self.out = Linear(width, width)
        gate_inputs = min(GATE_CHANNELS, width)
        self.gate = Linear(gate_inputs, self.num_heads) if has_value_embedding(layer) else None

    def forward(
        self, x: torch.Tensor, rotary: Rotary, value_embedding: torch.Tensor | None, mask: object
    ) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = (linear(x).view(B, T, self.num_heads, HEAD_DIM) for linear in (self.query, self.key, self.value))
        if self.gate is not None and value_embedding is not None:
            gate = 2 * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))  # (B, T, heads), 1 at the start
            v = v + gate[..., None] * value_embedding.view(B, T, self.num_heads, HEAD_DIM)
        return self.out(self.attend(rotary(q), rotary(k), v, mask).reshape(B, T, C))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: object) -> torch.Tensor:
        """(B, T, heads, HEAD_DIM) in and out: causal attention within the window, by the means that the mask is for."""
        if isinstance(mask, str):
            return flash_attention(q, k, v, self.window)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if mask is None:
            out = causal_attention(q, k, v)
        elif isinstance(mask, torch.Tensor):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            from torch.nn.attention.flex_attention import flex_attention  # a slow import that the CPU can do without

            attend = flex_attention if torch.compiler.is_compiling() else compiled(flex_attention)
            out = attend(q, k, v, block_mask=mask)
        return out.transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = Linear(width, 4 * width)
        self.down = Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return relu_squared_mlp(x, self.up.weight, self.down.weight)


class Block(nn.Module):
    def __init__(self, width: int, layer: int, window: int) -> None:
        super().__init__()
        self.attention = Attention(width, layer, window)
        self.mlp = MLP(width)

    def forward(
        self, x: torch.Tensor, rotary: Rotary, value_embedding: torch.Tensor | None, mask: object
    ) -> torch.Tensor:
        x = x + self.attention(norm(x), rotary, value_embedding, mask)
        return x + self.mlp(norm(x))


class GPT(nn.Module):
    def __init__(self, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        width = model_width()
        self.seq_len = seq_len
        self.windows = layer_windows(seq_len)
        self.embedding = nn.Embedding(vocab_size, width)
        self.value_embeddings = nn.ModuleDict(
            {str(i): nn.Embedding(vocab_size, width) for i in range(DEPTH) if has_value_embedding(i)}
        )
        self.blocks = nn.ModuleList(Block(width, i, window) for i, window in enumerate(self.windows))
        self.head = Linear(width, vocab_size)
        self.residual_scale = nn.Parameter(torch.ones(DEPTH))  # how much of the stream enters a layer
        self.input_scale = nn.Parameter(torch.full((DEPTH,), 0.1))  # how much of the embedding is added again
        self.rotary = Rotary(seq_len)
        self.masks: dict[int, object] = {}
        self.initialize()
        self.make_masks()

    @torch.no_grad()
    def initialize(self) -> None:
        """Layers start as the identity: whatever writes to the residual stream is zero."""
        width = self.embedding.embedding_dim
        bound = math.sqrt(3 / width)  # uniform with standard deviation width ** -0.5
        self.embedding.weight.normal_(std=1.0)
        self.head.weight.normal_(std=0.001)
        for table in self.value_embeddings.values():
            table.weight.uniform_(-bound, bound)
        for block in self.blocks:
            attention, mlp = block.attention, block.mlp
            for linear in (attention.query, attention.key, attention.value, mlp.up):
                linear.weight.uniform_(-bound, bound)
            for linear in (attention.out, mlp.down):
                linear.weight.zero_()
            if attention.gate is not None:
                attention.gate.weight.zero_()

    def make_masks(self) -> None:
        """One mask a window, for the device where the parameters are; none where full causal attention will do."""
        device, T = self.head.weight.device, self.seq_len
        flash = not unavailable(device, HEAD_DIM)
        self.masks = {}
        for window in sorted(set(self.windows)):
            if flash:
                self.masks[window] = FLASH
            elif window < T and device.type == "cuda" and COMPILE:
                from torch.nn.attention.flex_attention import create_block_mask

                self.masks[window] = create_block_mask(visible_within(window), None, None, T, T, device=device)
            elif window < T:
                ahead = torch.arange(T, device=device)[:, None] - torch.arange(T, device=device)
                self.masks[window] = (ahead >= 0) & (ahead < window)

    def _apply(self, fn: Callable[..., torch.Tensor], recurse: bool = True) -> "GPT":
        super()._apply(fn, recurse)
        self.make_masks()  # .to(device) moves parameters and buffers; masks are neither
        return self

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """idx (B, T) -> logits (B, T, V) in float32; with targets (B, T), their mean cross-entropy in nats."""
        if idx.size(1) != self.seq_len:
            raise ValueError(f"rows of {idx.size(1)} tokens, the model was built for {self.seq_len}")
        dtype = torch.bfloat16 if idx.is_cuda else torch.float32
        x = first = norm(self.embedding(idx).to(dtype))
        for i, block in enumerate(self.blocks):
            x = mix(x, first, self.residual_scale[i], self.input_scale[i])
            extra = self.value_embeddings[str(i)](idx).to(dtype) if has_value_embedding(i) else None
            x = block(x, self.rotary, extra, self.masks.get(self.windows[i]))
        x = norm(x)
        if targets is not None:
            return capped_cross_entropy(x.flatten(0, 1), self.head.weight, targets.flatten(), LOGIT_CAP)
        return soft_cap(self.head(x))

    def flops_per_token(self) -> int:
        """Forward and backward: 6 per weight in a matrix product, 12 per channel and visible token in attention."""
        weights = sum(p.numel() for p in self.blocks.parameters()) + self.head.weight.numel()
        return 6 * weights + sum(12 * self.embedding.embedding_dim * window for window in self.windows)


def build_model(meta: Meta) -> GPT:
    """The untrained model. The evaluator calls this too, so it must depend on nothing but meta and the knobs."""
    if HEAD_DIM % 2:
        raise ValueError(f"HEAD_DIM = {HEAD_DIM} is odd; rotary positions need pairs of channels")
    if not WINDOW_PATTERN or set(WINDOW_PATTERN) - {"L", "S"}:
        raise ValueError(f"WINDOW_PATTERN = {WINDOW_PATTERN!r}; use the letters L and S")
    return GPT(meta.vocab_size, meta.seq_len)


# ----------------------------------------------------------------------------------------------------------------------
# Optimizers: Muon for the matrices of the layers, AdamW for embeddings, head and scalars
# ----------------------------------------------------------------------------------------------------------------------

ADAM_EPS = 1e-10
INPUT_SCALE_BETAS = (0.96, 0.95)  # the input scalars need a longer average
RESIDUAL_SCALE_LR = 0.01  # of SCALAR_LR: a residual scalar multiplies all that came before
MUON_MOMENTUM = (0.85, 0.95, 300)  # from, to, over this many steps
MUON_BETA2 = 0.95

# Each step maps the singular values nearer to 1 by a*s + b*s^3 + c*s^5, with the best polynomial for what the
# step before leaves. Source: Amsel et al., The Polar Express (arXiv 2505.16932), five steps, safety 2 %.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly: (K, m, n) with all singular values near 1."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT  # the Gram matrix of the short side is the smaller one
    x = x / (1.02 * x.norm(dim=(-2, -1), keepdim=True) + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def muon_update(
    param: torch.Tensor, grad: torch.Tensor, average: torch.Tensor, energy: torch.Tensor, rates: torch.Tensor
) -> None:
    """One step for K matrices of a shape (K, m, n), in place; rates (4,): learning rate, momentum, beta2, weight decay.

    Nesterov momentum, orthogonalization, then variance reduction: each row (or column, along the longer side) is
    divided by the root of its running mean square, at unchanged Frobenius norm. Weight decay is cautious: only where
    it points the same way as the update. Source: NorMuon (arXiv 2510.05491), Cautious Weight Decay (arXiv 2510.12402).
    """
    lr, momentum, beta2, weight_decay = rates
    average.lerp_(grad, 1 - momentum)
    update = orthogonalize(grad.lerp(average, momentum))
    axis = -1 if param.size(-2) >= param.size(-1) else -2
    square = update.square().mean(dim=axis, keepdim=True)
    energy.lerp_(square, 1 - beta2)
    scale = energy.clamp_min(1e-10).rsqrt()
    before = square.sum(dim=(-2, -1), keepdim=True).sqrt()
    after = (square * scale.square()).sum(dim=(-2, -1), keepdim=True).sqrt()
    update = update * (scale * before / after.clamp_min(1e-10))
    decay = weight_decay * param * (update * param >= 0)
    param.sub_(lr * (update + decay))


def adamw_update(
    param: torch.Tensor, grad: torch.Tensor, average: torch.Tensor, square: torch.Tensor, rates: torch.Tensor
) -> None:
    """One AdamW step without weight decay, in place; rates (4,): learning rate, beta1, beta2, number of the step."""
    lr, beta1, beta2, count = rates
    average.lerp_(grad, 1 - beta1)
    square.lerp_(grad.square(), 1 - beta2)
    denominator = (square / (1 - beta2**count)).sqrt() + ADAM_EPS
    param.sub_(lr / (1 - beta1**count) * average / denominator)


class Optimizers:
    """Muon and AdamW over the parameters of a GPT. Rates are tensors, so that a compiled update stays valid."""

    def __init__(self, model: GPT) -> None:
        self.device = model.head.weight.device
        compiles = COMPILE and self.device.type == "cuda"
        self.muon = compiled(muon_update) if compiles else muon_update
        self.adamw = compiled(adamw_update) if compiles else adamw_update
        self.count = 0
        width_scale = (model_width() / 768) ** -0.5  # AdamW's rates were tuned at a width of 768
        self.adam_groups = [
            ([model.embedding.weight], EMBEDDING_LR * width_scale, ADAM_BETAS),
            ([table.weight for table in model.value_embeddings.values()], EMBEDDING_LR * width_scale, ADAM_BETAS),
            ([model.head.weight], UNEMBEDDING_LR * width_scale, ADAM_BETAS),
            ([model.residual_scale], SCALAR_LR * RESIDUAL_SCALE_LR, ADAM_BETAS),
            ([model.input_scale], SCALAR_LR, INPUT_SCALE_BETAS),
        ]
        self.adam_state = {
            p: (torch.zeros_like(p), torch.zeros_like(p)) for params, _, _ in self.adam_groups for p in params
        }
        shapes: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for param in model.blocks.parameters():
            shapes.setdefault(tuple(param.shape), []).append(param)
        self.muon_groups = list(shapes.values())  # matrices of a shape are updated as one batch
        self.muon_state = []
        for params in self.muon_groups:
            rows, columns = params[0].shape
            average = torch.zeros_like(torch.stack(params))
            energy = average.new_zeros((len(params), rows, 1) if rows >= columns else (len(params), 1, columns))
            self.muon_state.append((average, energy))

    @torch.no_grad()
    def step(self, lr_scale: float, progress: float) -> None:
        """Apply the gradients, and drop them."""
        self.count += 1
        adam_rates, muon_rates = self.rates(lr_scale, progress)
        for (params, _, _), rates in zip(self.adam_groups, adam_rates, strict=True):
            for param in params:
                self.adamw(param, param.grad, *self.adam_state[param], rates)
                param.grad = None
        for params, state, rates in zip(self.muon_groups, self.muon_state, muon_rates, strict=True):
            stacked = torch.stack([p.detach() for p in params])
            self.muon(stacked, torch.stack([p.grad for p in params]), *state, rates)
            for param, value in zip(params, stacked.unbind(), strict=True):
                param.copy_(value)
                param.grad = None

    def rates(self, lr_scale: float, progress: float) -> tuple[torch.Tensor, torch.Tensor]:
        """What each group's update is told, (groups, 4): on the device, or a C++ compiler would be asked for kernels
        that compute 1 - beta on the host."""
        low, high, over = MUON_MOMENTUM
        momentum = low + (high - low) * min(self.count / over, 1)
        adam = [(lr * lr_scale, *betas, self.count) for _, lr, betas in self.adam_groups]
        muon = []
        for params in self.muon_groups:
            rows, columns = params[0].shape
            lr = MATRIX_LR * lr_scale * max(1, rows / columns) ** 0.5
            muon.append((lr, momentum, MUON_BETA2, WEIGHT_DECAY * (1 - progress)))
        told = torch.tensor([*adam, *muon], dtype=torch.float32, pin_memory=self.device.type == "cuda")
        on_device = told.to(self.device, non_blocking=True)
        return on_device[: len(adam)], on_device[len(adam) :]


# ----------------------------------------------------------------------------------------------------------------------
# Schedule: by the clock, so that a faster model takes more steps over the same curve
# ----------------------------------------------------------------------------------------------------------------------


def lr_scale_at(progress: float) -> float:
    """Learning rates as a share of their peak, progress from 0 to 1 of the training time."""
    if progress < WARMUP_RATIO:
        return progress / WARMUP_RATIO
    if progress <= 1 - WARMDOWN_RATIO:
        return 1.0
    left = (1 - progress) / WARMDOWN_RATIO
    return left + (1 - left) * FINAL_LR_FRAC


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


class LossReading:
    """A loss on its way from the device: reading it one step later leaves the device no gap to idle in."""

    def __init__(self, loss: torch.Tensor, step: int, lr_scale: float, progress: float) -> None:
        self.step, self.lr_scale, self.progress = step, lr_scale, progress
        self.arrived = torch.cuda.Event() if loss.is_cuda else None
        self.value = torch.empty((), dtype=loss.dtype, pin_memory=loss.is_cuda)
        self.value.copy_(loss, non_blocking=True)
        if self.arrived is not None:
            self.arrived.record()

    def wait(self) -> float:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.value.item()


def num_microbatches(meta: Meta) -> int:
    """Forward passes in one optimizer step."""
    tokens = DEVICE_BATCH_SIZE * meta.seq_len
    if TOTAL_BATCH_SIZE < tokens or TOTAL_BATCH_SIZE % tokens:
        raise ValueError(
            f"TOTAL_BATCH_SIZE = {TOTAL_BATCH_SIZE} is not a multiple of DEVICE_BATCH_SIZE * sequence length = "
            f"{DEVICE_BATCH_SIZE} * {meta.seq_len} = {tokens}; change one of them"
        )
    return TOTAL_BATCH_SIZE // tokens


def train_step(model: GPT, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Gradients of the mean loss over the batches, and that loss."""
    losses = []
    for x, y in batches:
        loss = model(x, y) / len(batches)
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def warm_up(session: Session, model: GPT) -> None:
    """Compile and allocate on random tokens, before the clock; the parameters are put back as they were."""
    if COMPILE and model.head.weight.is_cuda:
        model.compile(dynamic=False)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizers = Optimizers(model)
    for _ in range(2):  # the second runs what the first compiled
        train_step(model, [session.warmup_batch(DEVICE_BATCH_SIZE)])
        optimizers.step(lr_scale=0.0, progress=0.0)
    model.load_state_dict(start)


def log_step(reading: LossReading, stamp: float) -> tuple[bool, float]:
    """Print a finished step. Whether its loss is finite, and when it was read; stamp is when the last one was."""
    loss = reading.wait()
    now = time.perf_counter()
    print(
        f"step={reading.step} loss={loss:.6f} lr_scale={reading.lr_scale:.3f} progress={reading.progress:.4f} "
        f"step_ms={1000 * (now - stamp):.2f}",
        flush=True,
    )
    return math.isfinite(loss), now


def main() -> None:
    try:
        session = Session.open()
        kernels.prepare(session.device, HEAD_DIM)
        accumulate = num_microbatches(session.meta)
        with torch.device(session.device):
            model = build_model(session.meta)
    except (AutoresearchError, ValueError) as error:
        sys.exit(f"train.py: {error}")
    print(kernels.choices(session.device, HEAD_DIM), flush=True)
    warm_up(session, model)
    optimizers = Optimizers(model)

    session.start()
    batches = session.batches(DEVICE_BATCH_SIZE)
    lag = 1 if session.device.type == "cuda" else 0  # steps that may be queued on the device before their loss is read
    readings: deque[LossReading] = deque()
    steps, finite, expired, stamp = 0, True, False, time.perf_counter()
    while finite and not expired:
        progress = session.progress
        lr_scale = lr_scale_at(progress)
        loss = train_step(model, [next(batches) for _ in range(accumulate)])
        optimizers.step(lr_scale, progress)
        steps += 1
        readings.append(LossReading(loss, steps, lr_scale, progress))
        expired = session.expired
        while finite and len(readings) > (0 if expired else lag):
            finite, stamp = log_step(readings.popleft(), stamp)
    if not finite:
        session.diverged(steps)
        sys.exit(f"train.py: the loss is not finite at step {steps}")

    session.save(model, steps=steps, tokens=steps * TOTAL_BATCH_SIZE, flops_per_token=model.flops_per_token())
    session.summary(depth=DEPTH)


if __name__ == "__main__":
    main()
