"""The tokenizer: exact, byte for byte, and the same each time."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from autoresearch_hpc.data import bpe

TEXTS = [f"def number_{i}(x):\n    return x + {i}  # größer 🙂 {'é' * (i % 5)} {i**9:x}\n" for i in range(300)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return bpe.train(TEXTS, 400)


@pytest.mark.parametrize(
    "text",
    [
        TEXTS[7],
        "never seen: Ω≈ç√∫ 中文 👩‍👩‍👧",
        "\r\n\t  mixed \n\n ends  ",
        "a <|bos|> inside <|bos|>",
        "\x00\x7f\ufeff",
        " ",
    ],
)
def test_token_bytes_are_the_utf8_bytes_of_the_decoded_text(tokenizer: Tokenizer, text: str) -> None:
    tokens, lengths = bpe.encode(tokenizer, [text])
    assert lengths.tolist() == [len(tokens)]
    assert bpe.BOS_ID not in tokens
    assert tokenizer.decode(tokens.tolist()) == text
    assert bpe.token_bytes(tokenizer, 400)[tokens].sum() == len(text.encode())


def test_encode_keeps_texts_apart(tokenizer: Tokenizer) -> None:
    tokens, lengths = bpe.encode(tokenizer, ["ab", "", "c"])
    assert lengths.tolist()[1] == 0
    assert tokenizer.decode(tokens[: lengths[0]].tolist()) == "ab"
    assert tokenizer.decode(tokens[lengths[0] :].tolist()) == "c"


def test_vocabulary_includes_bos_and_is_not_exceeded(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 400
    assert tokenizer.token_to_id("<|bos|>") == bpe.BOS_ID
    sizes = bpe.token_bytes(tokenizer, 400)
    assert sizes[bpe.BOS_ID] == 0
    assert (sizes[1:] > 0).all()


def test_little_text_fills_less_of_the_vocabulary() -> None:
    tokenizer = bpe.train(["aaaa"], 500)
    assert tokenizer.get_vocab_size() < 300
    sizes = bpe.token_bytes(tokenizer, 500)
    assert sizes.shape == (500,)
    assert (sizes[tokenizer.get_vocab_size() :] == 0).all()


def test_training_is_deterministic_and_saved_exactly(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tok en 'izer'.json"
    bpe.save(tokenizer, path)
    assert bpe.train(iter(TEXTS), 400).to_str() == path.read_text(encoding="utf-8")
    assert bpe.load(path).get_vocab() == tokenizer.get_vocab()


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": "1.0", "mod')
    with pytest.raises(ValueError, match="EOF"):
        bpe.load(path)
