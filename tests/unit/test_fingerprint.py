"""autoresearch_hpc.fingerprint: texts that mean the same, and texts that do not."""

import string

import pytest

from autoresearch_hpc.fingerprint import fingerprint

TEXT = '''\
"""What it does."""
LR = 0.5  # a rate
BATCH = 2**19
SIZES = (1, -2)


def f(x):
    """Doubles."""
    return 2 * x
'''


def of(text: str) -> str:
    return fingerprint({"train.py": text})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # a rate", ""),
        ('"""What it does."""\n', ""),
        ('    """Doubles."""\n', ""),
        ("2**19", "524288"),
        ("2**19", "1 << 19"),
        ("(1, -2)", "( 1,\n -2, )"),
        ("return 2 * x", "return (2*x)  # twice"),
        ("\n\n\n", "\n"),
    ],
)
def test_the_same_meaning(old: str, new: str) -> None:
    assert old in TEXT
    assert of(TEXT.replace(old, new)) == of(TEXT)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.5", "0.25"),
        ("2**19", "2**18"),
        ("2**19", "2.0**19"),
        ("(1, -2)", "[1, -2]"),
        ("2 * x", "x * 2"),
        ("def f(x)", "def g(x)"),
        ("return 2 * x", "return 2 * x\n    pass"),
    ],
)
def test_another_meaning(old: str, new: str) -> None:
    assert old in TEXT
    assert of(TEXT.replace(old, new)) != of(TEXT)


def test_files_and_knobs_count() -> None:
    prints = [
        fingerprint({"a.py": "x = 1"}),
        fingerprint({"b.py": "x = 1"}),
        fingerprint({"a.txt": "x = 1"}),
        fingerprint({"a.txt": "x = 1  "}),
        fingerprint({"a.py": "x = ("}),  # does not parse
        fingerprint({"a.py": "x =  ("}),
        fingerprint({"a.py": "x = 1"}, {"LR": 1}),
        fingerprint({"a.py": "x = 1"}, {"LR": 1.0}),
        fingerprint({"a.py": "x = 1"}, {"LR": True}),
        fingerprint({"a.py": "x = 1\0"}),
        fingerprint({"a.py": "x = '\ud800'"}),
        fingerprint({"a.py": "-" * 100_000 + "1"}),
    ]
    assert len(set(prints)) == len(prints)
    assert all(len(p) == 16 and set(p) <= set(string.hexdigits) for p in prints)
    assert fingerprint({}, {"A": 1, "B": (1, 2)}) == fingerprint({}, {"B": (1, 2), "A": 1})
    assert fingerprint({"a.py": "x = 1", "b.py": ""}) == fingerprint({"b.py": "# nothing", "a.py": "x=1"})
