import ast
import random

import pytest

from autoresearch_hpc import knobs
from autoresearch_hpc.errors import KnobError

TRAIN = '''\
"""A script."""
import os  # not a knob

DEPTH = 8                      # layers
MATRIX_LR: float = 0.04        # "quoted" # twice
TOTAL_BATCH_SIZE = 2**19 # tokens
DEVICE_BATCH_SIZE = 4 * 32
ADAM_BETAS = (0.8,0.95)
WINDOW_PATTERN = "SSSL"
USE_IT = True
CLIP = None
SHIFT = -1.5
COUNT = 524_288; FLAGS = 0xff
lower = 3
STEP_TIME = os.environ.get("X")
def main():
    DEPTH_INSIDE = 3
    DEPTH = 9
class Thing:
    WIDTH = 4
'''


def test_reads_every_plain_constant() -> None:
    assert knobs.read(TRAIN) == {
        "DEPTH": 8,
        "MATRIX_LR": 0.04,
        "TOTAL_BATCH_SIZE": 524288,
        "DEVICE_BATCH_SIZE": 128,
        "ADAM_BETAS": (0.8, 0.95),
        "WINDOW_PATTERN": "SSSL",
        "USE_IT": True,
        "CLIP": None,
        "SHIFT": -1.5,
        "COUNT": 524288,
        "FLAGS": 255,
    }


def test_an_integer_annotated_as_float_is_a_float() -> None:
    source = "LR: float = 1\n"
    assert type(knobs.read(source)["LR"]) is float
    assert knobs.rewrite(source, {"LR": 1.0}) == source
    assert knobs.rewrite(source, {"LR": 0.5}) == "LR: float = 0.5\n"


@pytest.mark.parametrize(
    ("before", "value", "after"),
    [
        ("X = 2**19", 2**18, "X = 2**18"),
        ("X = 2 ** 19", 1, "X = 2 ** 0"),
        ("X = 2**19", 3 * 2**17, "X = 393216"),
        ("X = 1 << 4", 64, "X = 1 << 6"),
        ("X = 4*1024", 8192, "X = 8192"),
        ("X = 524_288", 1048576, "X = 1_048_576"),
        ("X = 0xff", 16, "X = 0x10"),
        ("X = 8", 10.0, "X = 10"),
        ("X = 8", -3, "X = -3"),
        ("X = -8", -3, "X = -3"),
        ("X = -8", 3, "X = 3"),
        ("X = 0.5", 1, "X = 1.0"),
        ("X = 1e-3", 0.0005, "X = 5e-4"),
        ("X = 1e-3", 0.25, "X = 2.5e-1"),
        ("X = 0.04", 1e-07, "X = 1e-07"),
        ("X = (0.04)", 0.05, "X = (0.05)"),
        ("X = (0.8,0.95)", [0.9, 0.95], "X = (0.9,0.95)"),
        ("X = 0.8, 0.95", (1, 0.95), "X = 1.0, 0.95"),
        ("X = (1, 2)", (1, 2, 3), "X = (1, 2, 3)"),
        ("X = (1, 2)", (3,), "X = (3,)"),
        ("X = (1, 2)", (), "X = ()"),
        ("X = [1, 2]", (3,), "X = [3]"),
        ("X = ((1, 2), 'a')", ((1, 5), "b"), "X = ((1, 5), 'b')"),
        ('X = "SSSL"', "L", 'X = "L"'),
        ("X = 'SSSL'", "L", "X = 'L'"),
        ('X = "a"', 'say "hi"', "X = 'say \"hi\"'"),
        ('X = "a"', "it's", 'X = "it\'s"'),
        ('X = "a" "b"', "c\n\\", 'X = "c\\n\\\\"'),
        ("X = True", False, "X = False"),
        ("X = None", 0.5, "X = 0.5"),
        ("X = 0.5", None, "X = None"),
        ("X=1;Y=2", 7, "X=7;Y=2"),
        ("X: int=1#c", 7, "X: int=7#c"),
    ],
)
def test_rewrites_in_the_notation_of_the_script(before: str, value: object, after: str) -> None:
    assert knobs.rewrite(before, {"X": value}) == after


def test_rewrites_many_at_once_and_nothing_else() -> None:
    after = knobs.rewrite(TRAIN, {"FLAGS": 254, "DEPTH": 10, "MATRIX_LR": 0.05, "ADAM_BETAS": [0.8, 0.9], "COUNT": 1})
    assert after == (
        TRAIN.replace("DEPTH = 8 ", "DEPTH = 10 ")
        .replace("0.04", "0.05")
        .replace("(0.8,0.95)", "(0.8,0.9)")
        .replace("524_288", "1")
        .replace("0xff", "0xfe")
    )


def test_setting_knobs_to_their_values_leaves_the_text_alone() -> None:
    assert knobs.rewrite(TRAIN, knobs.read(TRAIN)) == TRAIN
    assert knobs.rewrite(TRAIN, {"DEPTH": 8.0, "ADAM_BETAS": [0.8, 0.95], "SHIFT": -1.5}) == TRAIN


def test_comments_inside_a_tuple_survive() -> None:
    source = "BETAS = (\n    0.8,  # first, ümläut\n    0.95,  # second\n)\n"
    assert knobs.rewrite(source, {"BETAS": (0.8, 0.9)}) == source.replace("0.95", "0.9")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("prefix", ["", "\ufeff", "# -*- coding: latin-1 -*-\n"])
def test_nasty_text_survives(newline: str, prefix: str) -> None:
    lines = ["π = 'ü𝔘\u2028\x85'; X = 1 # ü\u2028", "\x0c", "S = '''a", "X = 5", "'''; Y = (2**3) # é", "\tZ\t= 1", ""]
    lines[5] = "Z\t=\t1.5\\"
    source = prefix + newline.join([*lines, "A = 'ü𝔘' ; B = -4"])
    read = knobs.read(source)
    assert (read["X"], read["Y"], read["Z"], read["B"]) == (1, 8, 1.5, -4)
    after = knobs.rewrite(source, {"X": 22, "Y": 16, "Z": 2.5, "B": -44})
    expected = source.replace("X = 1 ", "X = 22 ").replace("2**3", "2**4").replace("\t1.5", "\t2.5")
    assert after == expected.replace("-4", "-44")


def test_random_scripts_change_only_in_the_values() -> None:
    rng = random.Random(7)
    decoys = ["# X0 = 1", "'''", "é = 'X1 = 2'", "if True:\n    pass", "def f(X2=3):\n    X3 = 4\n    return X3", ""]
    values: list[object] = [1, -7, 2**20, 0.04, -1e-9, 3.0, "a'b\"c\\", "ü\n", True, None, (1, 2.5), ("x",), ((1,), ())]
    for _ in range(300):
        names = [f"K{i}" for i in range(rng.randint(1, 6))]
        olds = {name: rng.choice(values) for name in names}
        spaces = {name: " " * rng.randint(0, 3) for name in names}
        comments = {
            name: rng.choice(["", " # é = 3", ";", " ; Q = 'K0 = 1'" if name == "K0" else ""]) for name in names
        }
        between = {name: rng.choice([d for d in decoys if d != "'''"]) for name in names}
        newline = rng.choice(["\n", "\r\n"])

        def script(
            shown: dict[str, str],
            names: list[str] = names,
            spaces: dict[str, str] = spaces,
            comments: dict[str, str] = comments,
            between: dict[str, str] = between,
            newline: str = newline,
        ) -> str:
            lines = [f"{between[n]}\n{n}{spaces[n]}={spaces[n]}{shown[n]}{comments[n]}\n" for n in names]
            return "".join(lines).replace("\n", newline)

        source = script({n: repr(v) for n, v in olds.items()})
        changed = {n: _another(rng, v, values) for n, v in olds.items() if rng.random() < 0.6}
        after = knobs.rewrite(source, changed)
        assert {n: knobs.read(after)[n] for n in names} == {**olds, **changed}
        # Undoing it restores the text, so nothing beside the values can have moved.
        assert _same_but_notation(knobs.rewrite(after, olds), source)


def _another(rng: random.Random, old: object, values: list[object]) -> object:
    return rng.choice([v for v in values if type(v) is type(old) and not isinstance(v, tuple)] or [old])


def _same_but_notation(a: str, b: str) -> bool:
    return len(a.split("\n")) == len(b.split("\n")) and ast.dump(ast.parse(a)) == ast.dump(ast.parse(b))


@pytest.mark.parametrize(
    ("source", "name", "words"),
    [
        ("DEPTH = 8", "DEPHT", "t.py has no knob DEPHT; did you mean DEPTH?"),
        ("DEPTH = 8", "depth", "did you mean DEPTH?"),
        ("DEPTH = 8", "ZZZ", "its knobs are module-level constants in upper case: DEPTH"),
        ("", "X", "none"),
        ("X = 1\n\nX = 2", "X", "more than once (lines 1, 3)"),
        ("X = 1\nX += 1", "X", "(lines 1, 2)"),
        ("X = 1\nif X:\n    X = 2", "X", "(lines 1, 3)"),
        ("X = 1\ndef f():\n    global X\n    X = 2", "X", "(lines 1, 3)"),
        ("X = 1\nfor X in range(3): pass", "X", "(lines 1, 2)"),
        ("X = 1\nimport numpy as X", "X", "(lines 1, 2)"),
        ("X = 1\nwith open('f') as (X, b): pass", "X", "(lines 1, 2)"),
        ("X = 1\ndel X", "X", "(lines 1, 2)"),
        ("X = 1\nY = (X := 3)", "X", "(lines 1, 2)"),
        ("X = 1\nmatch 3:\n    case X: pass", "X", "(lines 1, 3)"),
        ("X = 1\ntry: pass\nexcept OSError as X: pass", "X", "(lines 1, 3)"),
        ("X = 1\nclass X: pass", "X", "(lines 1, 2)"),
        ("X = Y = 3", "X", "t.py:1: knob X is not a plain assignment"),
        ("X, Y = 3, 4", "X", "not a plain assignment"),
        ("if True:\n    X = 3", "X", "t.py:2: knob X is not a plain assignment"),
        ("X = f(3)", "X", "t.py:1: knob X is not a plain value: found 'f(3)'"),
        ("X = f'a'", "X", "not a plain value"),
        ("X = b'a'", "X", "not a plain value"),
        ("X = {1: 2}", "X", "not a plain value"),
        ("X = (1, *Y)", "X", "not a plain value"),
        ("X = 1e999", "X", "not a finite number"),
        ("X = 1/0", "X", "division by zero"),
        ("X = 2**10**9", "X", "not a plain value"),
        ("X = 1 << 10**9", "X", "not a plain value"),
        ("X = f(" + "+".join("1" * 300) + ")", "X", "not a plain value"),
        ("X = 'a' * 3", "X", "arithmetic with 'a'"),
        ("X = (-1) ** 0.5", "X", "no ordinary number"),
    ],
)
def test_what_is_no_knob_is_one_line(source: str, name: str, words: str) -> None:
    for attempt in (lambda: knobs.check(source, [name], "t.py"), lambda: knobs.rewrite(source, {name: 1}, "t.py")):
        with pytest.raises(KnobError) as caught:
            attempt()
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert name not in knobs.read(source)


def test_other_scopes_do_not_count_as_a_second_assignment() -> None:
    source = (
        "X = 1\nX_ANNOTATED: int\ndef f(X=2):\n    X = 3\nclass C:\n    X = 4\n"
        "Y = [X for X in range(3)]\nZ = lambda X: X\nprint(X)\n"
    )
    assert knobs.read(source) == {"X": 1}
    knobs.check(source, ["X"])
    assert knobs.rewrite(source, {"X": 9}) == source.replace("X = 1", "X = 9", 1)


@pytest.mark.parametrize(
    ("source", "value", "words"),
    [
        ("X = 8", "8", "t.py:1: X holds a number and cannot be '8', a string"),
        ("X = 8", 8.5, "X is a whole number and cannot be 8.5"),
        ("X = 8", True, "cannot be True, a boolean"),
        ("X = True", 1, "X holds a boolean"),
        ("X = 'a'", 1, "X holds a string"),
        ("X = (1, 2)", 1, "X holds a tuple"),
        ("X = (1, 2)", (1, "a"), "cannot be 'a', a string"),
        ("X = (1, 2)", (1, 2, "a"), "cannot be 'a', a string"),
        ("X = 0.5", float("nan"), "set a finite number"),
        ("X = 0.5", float("inf"), "set a finite number"),
        ("X = None", float("inf"), "set a finite number"),
        ("X = None", (float("nan"),), "set a finite number"),
        ("X = 1", 2**2000, "so large a number"),
        ("X = 1", {"a": 1}, "not dict"),
    ],
)
def test_a_value_of_another_type_is_refused(source: str, value: object, words: str) -> None:
    with pytest.raises(KnobError) as caught:
        knobs.rewrite(source, {"X": value}, "t.py")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("X = 1\ny = (\n", "my train.py:2: does not parse"),
        ("X = 1\n  Y = 2", "my train.py:2: does not parse: unexpected indent"),
        ("X = 1\0", "does not parse"),
        ("X = '\ud800'", "does not parse"),
        ("X = " + "(" * 5000 + ")" * 5000, "does not parse"),
        ("X = " + "-" * 50_000 + "1", "does not parse"),
        ("X = " + "+".join("1" * 2500), "does not parse"),
    ],
)
def test_a_script_that_does_not_parse_is_one_line(source: str, words: str) -> None:
    with pytest.raises(KnobError) as caught:
        knobs.read(source, "my train.py")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
