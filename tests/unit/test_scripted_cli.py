"""The stand-in for a coding agent does what tests rely on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "e2e" / "scripted_cli.py"
SCRIPT = "x = 5.0\nMATRIX_LR = 0.04  # the rate\nLR = 0.1\n"
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(SCRIPT)

    def cli(*words: str, number: int | None = 7, text: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **({} if number is None else {"SCRIPTED_NUMBER": str(number)})}
        argv = [sys.executable, str(PROGRAM), *words]
        return subprocess.run(argv, env=environment, input=text, capture_output=True, text=True, timeout=60)

    return cli


def good(number: int) -> str:
    return SCRIPT.replace("0.04", str(0.2 + number / 1000))


def test_good_edits_differ_by_number(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "P").write_text("Try NUMBER=4")
    asked = ((["--prompt", "NUMBER=2"], ""), (["--stdin"], "NUMBER=3"), (["--prompt-file", "P"], ""))
    for number, (words, text) in enumerate(asked, start=2):
        assert cli("good", *words, number=None, text=text).returncode == 0
        assert Path("train.py").read_text() == good(number)
    cli("good")
    assert Path("train.py").read_text() == good(7)
    cli("good", number=None)
    assert Path("train.py").read_text() != good(7)


@pytest.mark.parametrize("behaviour", ["syntax", "forbidden", "nothing", "fail"])
def test_bad_behaviour_and_its_repair(cli: Cli, behaviour: str) -> None:
    Path("harness.py").write_text("x = 1\n")
    done = cli(behaviour)
    assert (done.returncode, bool(done.stderr)) == ((3, True) if behaviour == "fail" else (0, False))
    assert Path("sitecustomize.py").exists() == (behaviour == "forbidden")
    assert (Path("harness.py").read_text() == "x = 1\n") == (behaviour != "forbidden")
    if behaviour == "syntax":
        with pytest.raises(SyntaxError):
            compile(Path("train.py").read_text(), "train.py", "exec")
    assert cli(behaviour, "--prompt", "Please REPAIR it.").returncode == 0
    assert Path("train.py").read_text() == good(7)
    assert sorted(path.name for path in Path().iterdir()) == ["harness.py", "train.py"]


def test_hang_ignores_a_request_to_end(cli: Cli) -> None:
    with subprocess.Popen([sys.executable, str(PROGRAM), "hang"]) as process:
        while not Path("hang.json").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.kill()
    assert process.returncode == -signal.SIGKILL


def test_daemon_stays(cli: Cli) -> None:
    cli("daemon")
    pid = int(Path("daemon.json").read_text())
    os.kill(pid, signal.SIGKILL)  # raises where there is none
    assert Path("train.py").read_text() == good(7)


def test_reports(cli: Cli, tmp_path: Path) -> None:
    cli("env")
    assert json.loads(Path("env.json").read_text())["SCRIPTED_NUMBER"] == "7"
    cli("probe", "--repository", str(tmp_path / "none"))
    found = json.loads(Path("probe.json").read_text())
    assert found["cwd"] == "written"
    assert "No such file" in found["repository"]
    assert not list(tmp_path.glob("probe-*"))


def test_flood_and_script(cli: Cli, tmp_path: Path) -> None:
    assert len(cli("flood").stdout) >= 100_000_000
    (tmp_path / "edits.json").write_text(json.dumps([["train.py", "x = 5.0", "x = {number}"]]))
    cli("script", "--script", "edits.json")
    assert Path("train.py").read_text() == good(7).replace("x = 5.0", "x = 7")
