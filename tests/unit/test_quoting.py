"""autoresearch_hpc.quoting: foreign text without anything that a terminal or a reader would obey."""

import pytest

from autoresearch_hpc.quoting import MAX_CHARS, quoted, quoted_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext ü €\n", "plain\n\ttext ü €"),
        ("\x1b[31mred\x1b[0m \x1b[2J\x1b[1;1Hhome", "red home"),
        ("\x1b]0;a title\x07text \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "text link"),
        ("\x1bPq-sixels\x1b\\after\x1bcreset", "afterreset"),
        ("10%\r50%\r100%\ndone\r\nnext", "100%\ndone\nnext"),
        ("error: bad\rall is well   ", "all is well"),
        ("a\0b\x08c\x7fd\x9b31me", "abcde"),
        ("user\u202eresu\u202c \u2066x\u2069 \u200bzero\ufeff \U000e0041tag", "userresu x zero tag"),
        ("\udc80 \ud800", ""),
        ("", ""),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert quoted(text) == shown


def test_bounds() -> None:
    assert quoted("".join(f"{i}\n" for i in range(100))).splitlines() == [str(i) for i in range(60, 100)]
    line = quoted("head" + "x" * 10**6 + "end")
    assert len(line) <= 500
    assert line.endswith("end")
    assert "…" in line
    assert len(quoted("y" * 400 + "\n" + ("z" * 400 + "\n") * 100)) <= MAX_CHARS
    assert quoted_line("a\n b\x1b[1m\tc\r\n") == "a b c"
    assert quoted_line("x" * 1000) == "x" * 499 + "…"
