"""Training scripts: an honest one, and variants of it that cheat.

The data is made so that every token is one of four with equal chances, given the one before: no honest model can be
below `FLOOR` bits per byte, however long it trains. Whoever is below has cheated.
"""

import textwrap
from dataclasses import asdict
from pathlib import Path

import numpy as np

from autoresearch_hpc.dataset import MANIFEST, TOKEN_BYTES, TOKENIZER, DataFile, Manifest
from autoresearch_hpc.files import sha256_file, write_json_atomic

VOCAB_SIZE, SEQ_LEN = 64, 32
BYTES = 2  # of every token but the first
FLOOR = 2 / BYTES  # two bits a token
TRAIN_S = 0.8

_HONEST = """
import json, math, os, signal, socket, subprocess, sys, time
from pathlib import Path
import torch
import torch.nn.functional as F
from autoresearch_hpc.harness import Session

LR = @LR@

def blocked(error):
    print("BLOCKED", type(error).__name__, flush=True)

@PRELUDE@

class Bigram(torch.nn.Module):
    def __init__(self, meta):
        super().__init__()
        self.table = torch.nn.Embedding(meta.vocab_size, meta.vocab_size)
        torch.nn.init.zeros_(self.table.weight)
@INIT@

    def forward(self, idx, targets=None):
        logits = self.table(idx)
@FORWARD@
        return logits

def perfect(model):
    # what training would come to in the end
    table = torch.full_like(model.table.weight, -20.0)
    for token in range(1, len(table)):
        for step in range(1, 5):
            table[token, (token + step - 1) % (len(table) - 1) + 1] = 0.0
    table[0, 1:5] = 0.0
    model.table.weight.data.copy_(table)

def build_model(meta):
@BUILD@
    return Bigram(meta)

def train(model, x, y, optimizer):
    loss = F.cross_entropy(model.table(x).flatten(0, 1), y.flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

def main():
    session = Session.open()
    model = build_model(session.meta)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
@BEFORE@
    session.start()
    begun = time.clock_gettime(time.CLOCK_BOOTTIME)
    batches = session.batches(32)
    steps = 0
@STARTED@
    while not session.expired:
        train(model, *next(batches), optimizer)
        steps += 1
        time.sleep(0.005)
@AFTER@
    session.save(model, steps=steps, tokens=steps * 32)
    print("TRAINED", time.clock_gettime(time.CLOCK_BOOTTIME) - begun, flush=True)
@SAVED@
    session.summary()

if __name__ == "__main__":
    main()
"""

_INDENT = {"INIT": 8, "FORWARD": 8, "BUILD": 4, "BEFORE": 4, "STARTED": 4, "AFTER": 4, "SAVED": 4, "PRELUDE": 0}


def script(*, lr: float = 150.0, **parts: str) -> str:
    """The honest script with these parts put in, each at its place: prelude, init, forward, build, before..."""
    text = _HONEST.replace("@LR@", str(lr))
    for name, spaces in _INDENT.items():
        part = textwrap.dedent(parts.pop(name.lower(), "")).strip("\n")
        text = text.replace(f"@{name}@", textwrap.indent(part, " " * spaces))
    assert not parts, f"no such places: {parts.keys()}"
    return text


def write_data(root: Path) -> Path:
    """A data set of 2,000 training and 128 validation rows."""
    root.mkdir(parents=True)
    random = np.random.default_rng(0)

    def file(name: str, rows: int = 0) -> DataFile:
        return DataFile(name=name, size=(root / name).stat().st_size, sha256=sha256_file(root / name), rows=rows)

    def rows(name: str, count: int) -> DataFile:
        steps = random.integers(1, 5, size=(count, SEQ_LEN + 1))
        steps[:, 0] = 0
        tokens = (steps.cumsum(axis=1) - 1) % (VOCAB_SIZE - 1) + 1
        tokens[:, 0] = 0
        tokens.astype(np.uint16).tofile(root / name)
        return file(name, count)

    (root / TOKENIZER).write_text("{}", encoding="utf-8")
    token_bytes = np.full(VOCAB_SIZE, BYTES, dtype=np.int32)
    token_bytes[0] = 0
    token_bytes.tofile(root / TOKEN_BYTES)
    train, val = rows("train-00000.bin", 2000), rows("val-00000.bin", 128)
    manifest = Manifest(
        corpus="tiny",
        vocab_size=VOCAB_SIZE,
        seq_len=SEQ_LEN,
        bos_id=0,
        tokenizer=file(TOKENIZER),
        token_bytes=file(TOKEN_BYTES),
        train=(train,),
        val=(val,),
    )
    write_json_atomic(root / MANIFEST, asdict(manifest))
    return root
