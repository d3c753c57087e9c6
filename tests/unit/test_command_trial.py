"""How a foreign script's metric is found: in a JSON file or in its output."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_trial import FakeTrial

from autoresearch_hpc.records import CommandSpec, Status
from autoresearch_hpc.trial.command import read_metric


def of_json(tmp_path: Path, text: str, key: str = "loss") -> float:
    (tmp_path / "metrics.json").write_text(text)
    spec = CommandSpec(command="", metric_json="metrics.json", metric_key=key)
    return read_metric(spec, tmp_path, tmp_path / "log")


def of_output(tmp_path: Path, text: str, regex: str) -> float:
    (tmp_path / "log").write_text(text)
    return read_metric(CommandSpec(command="", metric_regex=regex), tmp_path, tmp_path / "log")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ('{"loss": 1}', "loss", 1.0),
        ('{"loss": -2.5e-3}', "loss", -0.0025),
        ('{"val": {"best": {"loss": 3}}}', "val.best.loss", 3.0),
        ('{"val.loss": 4}', "val.loss", 4.0),
        ('{"val": {"top.1": 5}}', "val.top.1", 5.0),
        ('{"history": [{"loss": 6}, {"loss": 7}]}', "history.-1.loss", 7.0),
        ("[8, 9]", "1", 9.0),
        ('{"loss": 0}', "loss", 0.0),
    ],
)
def test_a_number_at_a_dotted_key(tmp_path: Path, text: str, key: str, value: float) -> None:
    assert of_json(tmp_path, text, key) == value


@pytest.mark.parametrize(
    "text", ['{"loss": NaN}', '{"loss": Infinity}', '{"loss": 1e999}', '{"loss": 1' + "0" * 400 + "}"]
)
def test_what_is_not_finite_is_a_number_all_the_same(tmp_path: Path, text: str) -> None:
    assert not abs(of_json(tmp_path, text)) < 1e308


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", "null", '{"lss": 1}', '{"loss": null}', '{"loss": true}', '{"loss": "0.5"}',
        '{"loss": [1]}', '{"loss": {"x": 1}}', "[" * 100_000, '{"loss": ' + "9" * 10_000 + "}",
    ],
)  # fmt: skip
def test_no_number_there(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"^metrics\.json has no number at 'loss'$"):
        of_json(tmp_path, text)


def test_no_such_file(tmp_path: Path) -> None:
    spec = CommandSpec(command="", metric_json="a b/metrics.json", metric_key="loss")
    with pytest.raises(ValueError, match=r"^the script wrote no a b/metrics\.json$"):
        read_metric(spec, tmp_path, tmp_path / "log")
    (tmp_path / "a b").mkdir()
    os.mkfifo(tmp_path / "a b" / "metrics.json")  # reading it would wait for ever
    with pytest.raises(ValueError, match="wrote no"):
        read_metric(spec, tmp_path, tmp_path / "log")


def test_the_last_match_of_an_expression(tmp_path: Path) -> None:
    log = "step 1 loss: 3.0\nstep 2 loss: 2.5\nloss: 9 of something else\n\xff ünïcode"
    assert of_output(tmp_path, log, r"step \d+ loss: (\S+)") == 2.5
    assert of_output(tmp_path, log, r"^loss: (\S+)") == 9.0
    assert of_output(tmp_path, "acc=1e-3\r\n", r"acc=([\d.e-]+)") == 0.001


@pytest.mark.parametrize(
    ("regex", "words"),
    [
        (r"lss: (\S+)", "no match of"),
        (r"loss: (\w+)", "must have one group that matches a number"),
        (r"(\w+): (\w+)", "must have one group"),
    ],
)
def test_an_expression_without_a_number(tmp_path: Path, regex: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        of_output(tmp_path, "loss: many\n", regex)


def test_a_metric_at_the_end_of_a_huge_log_is_found(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        file.truncate(1 << 31)  # a hole of 2 GB
        file.seek(0, 2)
        file.write(b"\nloss: 0.5\n")
    spec = CommandSpec(command="", metric_regex=r"^loss: (\S+)$")
    assert read_metric(spec, tmp_path, tmp_path / "log") == 0.5


# whole trials


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., FakeTrial]:
    def make(files: dict[str, str], line: str, **metric: Any) -> FakeTrial:
        trial = FakeTrial(tmp_path / "a trial", files)
        trial.command(line, **metric)
        return trial

    return make


Make = Callable[..., FakeTrial]
JSON = {"metric_regex": None, "metric_json": "out/m.json", "metric_key": "a.loss"}


def test_a_json_metric_of_a_whole_trial(make: Make) -> None:
    trial = make({"my fit.py": ""}, """mkdir -p out && echo '{"a": {"loss": 2}}' > out/m.json""", **JSON)
    result = trial.run()
    assert (result.status, result.metric.value) == (Status.OK, 2.0)


def test_a_metric_that_was_committed_is_nobodys_result(make: Make) -> None:
    stale = json.dumps({"a": {"loss": 0.001}})
    result = make({"fit.py": "", "out/m.json": stale}, "true", **JSON).run()
    assert result.status is Status.INVALID
    assert result.error
    assert result.error.message == "the script wrote no out/m.json"


def test_the_command_is_a_shell_line_in_the_copy_of_the_files(make: Make) -> None:
    trial = make({"a b/it's.sh": "pwd > ../../where; echo loss: $((1 + 1))"}, """cd 'a b' && sh "it's.sh" | cat""")
    result = trial.run()
    assert result.metric.value == 2.0
    assert (trial.paths.root / "where").read_text().strip() == str(trial.paths.root / "work" / "a b")


@pytest.mark.parametrize(("line", "type_"), [("nosuchprogram", "ExitStatus"), (f"'{sys.executable}' -c '1/0'", "Zero")])
def test_a_command_that_fails(make: Make, line: str, type_: str) -> None:
    result = make({"fit.py": ""}, line).run()
    assert result.status is Status.CRASHED
    assert result.error
    assert result.error.type.startswith(type_)
    assert result.error.tail


def test_links_inside_the_files_stay_links(make: Make) -> None:
    trial = make({"fit.py": "", "data.txt": "7"}, "readlink link; echo loss: $(cat link)")
    (trial.src / "link").symlink_to("data.txt")
    (trial.src / "dangling").symlink_to("nowhere")
    assert trial.run().metric.value == 7.0
