"""The server of a language model as a job: what it tells whom, how it ends, and that its key stays secret."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autoresearch_hpc.files import write_json_atomic

STAND_IN = Path(__file__).parents[1] / "stand_in_llm.py"
SERVER = [sys.executable, str(STAND_IN), "--port", "{port}"]


class Job:
    """One call of the command, with its output in a file."""

    def __init__(
        self, folder: Path, command: list[str], *options: str, env: dict[str, str] | None = None, code: str = ""
    ) -> None:
        self.address_file = folder / "new folder" / "llm 'é'.json"
        self._log = folder / f"log-{time.monotonic_ns()}"
        module = ["-c", f"{code}; import sys; sys.exit(exits.run(llm_server.main))"] if code else ["-m", MODULE]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "VLLM"))}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *module, *options, str(self.address_file), "--", *command],
                stdout=log,
                stderr=log,
                env=environment | {"TMPDIR": str(folder)} | (env or {}),
                umask=0,
            )

    @property
    def said(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def address(self) -> dict[str, Any]:
        until(self.address_file.exists, self)
        found: dict[str, Any] = json.loads(self.address_file.read_text(encoding="utf-8"))
        return found

    def ended(self, code: int, timeout_s: float = 60) -> str:
        """Wait for its end; what it said last."""
        assert self.process.wait(timeout_s) == code, self.said
        return self.said.splitlines()[-1]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.ended(3)


MODULE = "autoresearch_hpc.llm_server"
QUICK = "from autoresearch_hpc import exits, llm_server; llm_server._END_S = 0.5"
Start = Callable[..., Job]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    jobs: list[Job] = []

    def begin(*options: str, server: list[str] = SERVER, misbehave: tuple[str, ...] = (), **settings: Any) -> Job:
        # `localhost`: the stand-in listens to nothing else
        jobs.append(Job(tmp_path, [*server, *misbehave], "--host", "localhost", *options, **settings))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.process.wait(12)
        job.process.kill()
        job.process.wait()


def until(condition: Callable[[], object], job: Job, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert job.process.poll() is None, job.said
        assert time.monotonic() < deadline, job.said
        time.sleep(0.02)


def ask(address: dict[str, Any], key: str) -> int:
    request = urllib.request.Request(f"{address['base_url']}/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def is_up(address: dict[str, Any]) -> bool:
    try:
        return ask(address, address["api_key"]) == 200
    except OSError:  # also of one that ends while it is asked
        return False


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---- What it tells


def test_once_it_answers_the_file_says_all_that_a_client_needs(start: Start) -> None:
    job = start(env={"SLURM_JOB_ID": "42"})
    address = job.address()
    assert set(address) == {"base_url", "api_key", "model", "host", "port", "job_id", "started_at"}
    assert address["base_url"] == f"http://localhost:{address['port']}/v1"
    assert (address["host"], address["model"], address["job_id"]) == ("localhost", "stand-in", "42")
    assert address["started_at"].endswith("+00:00")
    assert 20_000 <= address["port"] < 32_768
    assert len(address["api_key"]) >= 40
    assert ask(address, address["api_key"]) == 200
    assert ask(address, "another") == 401
    until(lambda: "stand-in answers at" in job.said, job)
    job.stop()
    again = start()
    assert again.address()["api_key"] != address["api_key"]
    assert again.address()["job_id"] is None


def test_nobody_else_can_read_the_key_not_for_a_moment(start: Start, tmp_path: Path) -> None:
    """The umask is 000. Another process looks at all modes as fast as it can, while servers come and go."""
    code = """
import os, sys
while not os.path.exists(sys.argv[1] + "/enough"):
    for folder, _, names in os.walk(sys.argv[1]):
        for name in names:
            try:
                found = os.stat(folder + "/" + name).st_mode & 0o777
            except OSError:
                continue
            if not name.startswith(("log", "enough")):
                print(name.lstrip(".").partition(".json")[0], oct(found), flush=True)
"""
    seen = tmp_path / "log-seen"
    with seen.open("w") as file:
        watcher = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=file)
    for _ in range(3):
        job = start(server=[*SERVER, "--key-file", "{key_file}"])
        job.address()
        assert mode(job.address_file) == 0o600
        assert mode(job.address_file.parent) == 0o700
        job.stop()
    (tmp_path / "enough").touch()
    watcher.wait(10)
    found = set(seen.read_text().splitlines())
    assert "llm 'é' 0o600" in found
    assert {line.split()[-1] for line in found} == {"0o600"}, found
    assert len(found) >= 2, "the key's own file is among them"
    assert list(tmp_path.glob("llm-server-*")) == [], "and is gone afterwards"


def test_no_process_has_the_key_among_its_arguments(start: Start) -> None:
    job = start(server=[*SERVER, "--key-file", "{key_file}"])
    key = job.address()["api_key"].encode()
    arguments = b""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            arguments += entry.read_bytes()
    assert str(STAND_IN).encode() in arguments
    assert key not in arguments


def test_the_servers_output_comes_along_without_the_key(start: Start) -> None:
    job = start()
    key = job.address()["api_key"]
    assert "loading, with the key (the key)\n" in job.said
    job.stop()
    assert key not in job.said


def test_words_with_other_braces_stay_as_they_are(start: Start, tmp_path: Path) -> None:
    job = start(
        server=["sh", "-c", 'echo "$1" > "$2"; exit 5', "x", '{"a": {port}, "h": "{host}"}', str(tmp_path / "w")]
    )
    job.ended(1)
    words = json.loads((tmp_path / "w").read_text())
    assert words["a"] >= 20_000
    assert words["h"] == "localhost"


def test_neither_a_proxy_nor_a_slow_start_matters(start: Start) -> None:
    nowhere = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "no_proxy": ""}
    begun = time.monotonic()
    job = start(misbehave=("--slow", "2"), env=nowhere)
    until(lambda: "loading" in job.said, job)
    assert not job.address_file.exists()
    job.address()
    assert time.monotonic() - begun > 2


def test_a_server_that_demands_no_key_is_told_of(start: Start) -> None:
    open_ = start(misbehave=("--open",))
    open_.address()
    until(lambda: "it answers without the key, too" in open_.said, open_)
    open_.stop()
    demanding = start()
    demanding.address()
    assert "without the key, too" not in demanding.said


@pytest.mark.parametrize("nodename", [None, "127.0.0.1", "no-such-node.invalid"])
def test_the_host_is_the_nodes_name(monkeypatch: pytest.MonkeyPatch, nodename: str | None) -> None:
    from autoresearch_hpc import llm_server

    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    monkeypatch.setattr("socket.getfqdn", lambda: "localhost.localdomain")
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    if nodename:
        monkeypatch.setenv("SLURMD_NODENAME", nodename)
    assert llm_server._node_name() == ("127.0.0.1" if nodename == "127.0.0.1" else "node7")
    monkeypatch.setattr("socket.getfqdn", lambda: "node7.cluster")
    assert llm_server._node_name() == ("127.0.0.1" if nodename == "127.0.0.1" else "node7.cluster")


# ---- How it ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_server_and_file(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    job = start(misbehave=("--child", str(tmp_path / "child")))
    address = job.address()
    child = int((tmp_path / "child").read_text())
    assert is_running(child)
    job.process.send_signal(number)
    assert job.ended(3).startswith(f"autoresearch_hpc: the server was stopped by {number.name}; ")
    assert not job.address_file.exists()
    assert not is_up(address)
    assert not is_running(child), "in a session of its own, but below us"


def test_stopped_while_it_loads_there_is_never_a_file(start: Start) -> None:
    job = start(misbehave=("--slow", "60"))
    until(lambda: "loading" in job.said, job)
    job.process.send_signal(signal.SIGUSR1)
    job.ended(3, timeout_s=30)
    assert not job.address_file.exists()


def test_what_ignores_sigterm_is_killed(start: Start) -> None:
    job = start(misbehave=("--deaf",), code=QUICK)
    address = job.address()
    job.stop()
    assert not is_up(address)
    assert not job.address_file.exists()


def test_a_shell_around_the_server_does_not_cost_it_its_time(start: Start, tmp_path: Path) -> None:
    """The shell ends at once; the server, a second later, by itself."""
    line = f'trap \'sleep 1; touch "{tmp_path}/ended"; kill %1; exit\' TERM; "$@" & wait'
    job = start(server=["sh", "-c", 'sh -c "$0" "$@" ; true', line, "x", *SERVER])
    job.address()
    job.stop()
    assert (tmp_path / "ended").exists()


def test_a_job_that_is_killed_outright_takes_its_server_along(start: Start) -> None:
    job = start()
    address = job.address()
    job.process.kill()
    deadline = time.monotonic() + 30
    while is_up(address):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert job.address_file.exists()
    again = start()
    until(lambda: not again.address_file.exists() or again.address() != address, again)
    assert is_up(again.address())


@pytest.mark.parametrize("fault", ["--dies-loading", "--dies"])
def test_a_server_that_dies_is_told_of_with_its_last_words(start: Start, fault: str) -> None:
    job = start(misbehave=(fault,))
    if fault == "--dies":
        job.address()
    line = "autoresearch_hpc: the server ended by itself, with status 7: RuntimeError: no room on the GPU"
    assert job.ended(1) == line
    assert "Traceback:" in job.said
    assert not job.address_file.exists()


def test_one_that_ends_well_was_to_stay_all_the_same(start: Start) -> None:
    assert start(server=["true", "{port}"]).ended(1).endswith("with status 0: it said nothing")


@pytest.mark.parametrize(("fault", "words"), [(("--slow", "60"), "refused"), (("--no-model",), "it offers no model")])
def test_one_that_is_never_ready_is_given_up(start: Start, tmp_path: Path, fault: tuple[str, ...], words: str) -> None:
    job = start("--ready-s", "4", misbehave=(*fault, "--child", str(tmp_path / "child")))
    line = job.ended(1)
    assert line.startswith("autoresearch_hpc: the server has not answered at http://localhost:")
    assert "/v1 for 4 s: " in line
    assert words in line
    assert line.endswith("; read what it said, or give it longer with --ready-s")
    assert not is_running(int((tmp_path / "child").read_text()))
    assert not job.address_file.exists()


@pytest.mark.parametrize(
    ("options", "server", "words"),
    [
        ((), ["/no/such/program", "{port}"], "autoresearch_hpc: /no/such/program cannot be started: No such file"),
        ((), ["vllm", "serve"], "the command behind -- must have {port}"),
        ((), [], "the command behind -- must have {port}"),
        (("--ready-s", "0"), SERVER, "--ready-s"),
    ],
)
def test_wrong_usage_is_one_line(start: Start, options: tuple[str, ...], server: list[str], words: str) -> None:
    assert words in start(*options, server=server).ended(2)


# ---- Whose file it is


def test_a_file_that_has_become_anothers_is_left_alone(start: Start) -> None:
    job = start()
    other = job.address() | {"api_key": "another"}
    write_json_atomic(job.address_file, other)
    job.stop()
    assert json.loads(job.address_file.read_text()) == other


def test_a_live_servers_file_is_replaced_only_on_request(start: Start) -> None:
    first = start(env={"SLURM_JOB_ID": "7"})
    address = first.address()
    line = start(env={"SLURM_JOB_ID": "8"}).ended(2)
    assert f" tells of a server of job 7, which answers at {address['base_url']}; end that one, " in line
    assert address["api_key"] not in line
    assert first.address() == address
    second = start("--replace", env={"SLURM_JOB_ID": "8"})
    until(lambda: json.loads(first.address_file.read_text())["job_id"] == "8", second)
    first.stop()
    assert second.address()["job_id"] == "8"


def test_of_two_that_start_together_one_gives_way(start: Start, tmp_path: Path) -> None:
    go = tmp_path / "go"
    slow = start(server=["sh", "-c", 'echo slow; until [ -e "$0" ]; do sleep 0.1; done; exec "$@"', str(go), *SERVER])
    until(lambda: "slow" in slow.said, slow)
    quick = start()
    address = quick.address()
    go.touch()
    assert "tells of a server that is no job, which answers" in slow.ended(2)
    assert quick.address() == address
    assert is_up(address)


@pytest.mark.parametrize("left_by", ["a dead server", "an earlier life of the same job"])
def test_what_is_left_of_an_earlier_one_is_removed_before_the_new_one_answers(start: Start, left_by: str) -> None:
    first = start(env={"SLURM_JOB_ID": "7"})
    address = first.address()
    if left_by == "a dead server":
        first.process.kill()
        first.process.wait()
    second = start(misbehave=("--slow", "2"), env={"SLURM_JOB_ID": "8" if left_by == "a dead server" else "7"})
    until(lambda: not first.address_file.exists(), second)
    assert second.address()["port"] != address["port"]


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"base_url": "x"}', "precious"])
def test_a_file_that_tells_of_no_server_is_not_touched(start: Start, tmp_path: Path, content: str) -> None:
    path = tmp_path / "new folder" / "llm 'é'.json"
    path.parent.mkdir()
    path.write_text(content)
    assert start("--replace").ended(2).endswith("is there and tells of no server; name another file, or remove it")
    assert path.read_text() == content
