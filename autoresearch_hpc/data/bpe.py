"""The tokenizer: a byte-level BPE, trained, saved and applied with the `tokenizers` library.

Every byte is a token of its own, so any text can be written; `<|bos|>` has id 0 and starts each document. Text that
happens to contain `<|bos|>` is text like any other.
"""

import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autoresearch_hpc.files import write_text_atomic

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BOS = "<|bos|>"
BOS_ID = 0

# How text falls into words before any merging. Source: GPT-4's pattern (tiktoken's cl100k_base), with numbers in
# groups of at most two digits, which spends fewer entries of a small vocabulary on them.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train(texts: Iterable[str], vocab_size: int) -> "Tokenizer":
    """A tokenizer of at most vocab_size ids, `<|bos|>` included; fewer where the text is too small for more."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    # Unset, the library prints a warning in every process that is forked later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save(tokenizer: "Tokenizer", path: Path) -> None:
    write_text_atomic(path, tokenizer.to_str())


def load(path: Path) -> "Tokenizer":
    """The tokenizer in path. Raises ValueError where the file is no tokenizer, OSError as `open` does."""
    from tokenizers import Tokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    text = path.read_text(encoding="utf-8")
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(str(error)) from error


def encode(tokenizer: "Tokenizer", texts: Sequence[str]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
    """All texts' tokens one after another, without `<|bos|>`, and how many each text has."""
    tokenizer.encode_special_tokens = True  # "<|bos|>" inside a text is not the special token
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    lengths = np.array([len(i) for i in ids], np.int64)
    return np.fromiter(chain.from_iterable(ids), np.dtype("<u2"), int(lengths.sum())), lengths


def token_bytes(tokenizer: "Tokenizer", vocab_size: int) -> npt.NDArray[np.int32]:
    """UTF-8 bytes of each id, `(vocab_size,)`; 0 for `<|bos|>` and for ids that no token has."""
    sizes = np.zeros(vocab_size, "<i4")
    for token, index in tokenizer.get_vocab().items():
        sizes[index] = 0 if token == BOS else len(token)  # byte-level: one character stands for one byte
    return sizes
