"""python -m autoresearch_hpc.llm_server ADDRESS_FILE -- COMMAND...: a language model's server that says where it is.

Starts an OpenAI-compatible server, in whose words {port}, {host} and {key_file} are replaced, and once it answers tells
of it in ADDRESS_FILE, which nobody but its owner can read, not for a moment:

    {"base_url": "http://HOST:PORT/v1", "api_key": ..., "model": the first it offers, "host": ..., "port": ...,
     "job_id": Slurm's or null, "started_at": ...}

Port and key are new each time. The key goes by VLLM_API_KEY and OPENAI_API_KEY or by {key_file}, never by an argument,
which others could see. The file is there for as long as the server is; whoever asks the server reads it again when it
does not answer. sbatch/llm_server.sbatch runs this as a job.
"""

import argparse
import contextlib
import http.client
import json
import math
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from autoresearch_hpc import exits, leftovers
from autoresearch_hpc.errors import AutoresearchError, ConfigError, InterruptedRun
from autoresearch_hpc.files import read_json, write_json_atomic, write_text_atomic
from autoresearch_hpc.quoting import quoted_line

_READY_S = 1800.0  # large models take their time to load
_ANSWER_S = 5.0
_LOOK_S = 0.2
_END_S = 10.0  # from SIGTERM to SIGKILL
_STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_PORTS = range(20_000, 32_768)  # none that the kernel gives to others' connections while the server still loads
_TAIL_LINES = 20
_UNREADY = (OSError, http.client.HTTPException, ValueError, KeyError, TypeError)
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches a compute node


def serve(path: Path, command: Sequence[str], *, host: str, ready_s: float = _READY_S, replace: bool = False) -> None:
    """Run the server until a signal stops it. Needs the main thread.

    Raises InterruptedRun for that, AutoresearchError where the server ends by itself or does not answer in time, and
    ConfigError where it cannot be started or where path is another live server's.
    """
    stop = _StopFlag()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _claim(path, replace)
    port, key = _free_port(), secrets.token_urlsafe(32)
    base_url = f"http://{host}:{port}/v1"
    with tempfile.TemporaryDirectory(prefix="llm-server-") as folder:
        key_file = Path(folder) / "key"
        with _private():
            write_text_atomic(key_file, key)
        replaced = {"{port}": str(port), "{host}": host, "{key_file}": str(key_file)}
        server = _Server([_replace(word, replaced) for word in command], key)
        try:
            model = _await_model(server, base_url, key, ready_s, stop)
            _claim(path, replace)  # another may have come first
            address = {"base_url": base_url, "api_key": key, "model": model, "host": host, "port": port}
            now = datetime.now(UTC).isoformat(timespec="seconds")
            with _private():
                write_json_atomic(path, {**address, "job_id": _job_id(), "started_at": now})
            print(f"llm_server: {model} answers at {base_url}, as {path} says", flush=True)
            while True:
                server.check(stop)
                time.sleep(_LOOK_S)
        finally:
            _withdraw(path, key)  # first: after a SIGTERM there may be little time
            server.end()


class _StopFlag:
    """Remembers the first signal that asks to stop."""

    def __init__(self) -> None:
        self._reason = ""
        for number in _STOPPING:
            signal.signal(number, self._note)

    def _note(self, number: int, _: object) -> None:
        self._reason = self._reason or signal.Signals(number).name

    def check(self) -> None:
        """Raises InterruptedRun once a signal has come."""
        if self._reason:
            raise InterruptedRun(f"the server was stopped by {self._reason}", "the same command starts it again")


class _Server:
    """The command's processes. Their output is passed on without the key, and its end remembered."""

    def __init__(self, command: Sequence[str], key: str) -> None:
        leftovers.adopt_orphans()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "VLLM_API_KEY": key, "OPENAI_API_KEY": key},
                start_new_session=True,
                preexec_fn=leftovers.die_with_parent,
            )
        except OSError as error:
            raise ConfigError(
                f"{command[0]} cannot be started: {error.strerror}", "is the environment that has it active?"
            ) from error
        self._key = key.encode()
        self._tail: deque[bytes] = deque(maxlen=_TAIL_LINES)
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        self._reader.start()

    def _pass_on(self) -> None:
        assert self._process.stdout
        heard = True
        while line := self._process.stdout.readline(65_536):
            line = line.replace(self._key, b"(the key)")
            self._tail.append(line)
            try:
                if heard:
                    sys.stdout.buffer.write(line)
                    sys.stdout.buffer.flush()
            except (OSError, ValueError):
                heard = False  # the log is full or closed: still read, else the server would wait for ever

    def check(self, stop: _StopFlag) -> None:
        """Raises AutoresearchError where the server has ended by itself, InterruptedRun where a signal has come."""
        stop.check()
        status = self._process.poll()
        if status is None:
            return
        time.sleep(_LOOK_S)  # a signal to the whole job may have ended the server before it came here
        stop.check()
        self.end()
        lines = [quoted_line(line.decode(errors="replace")) for line in self._tail]
        words = next((line for line in reversed(lines) if line), "it said nothing")
        raise AutoresearchError(f"the server ended by itself, with status {status}: {words}")

    def end(self) -> None:
        """SIGTERM to all of its group, SIGKILL to whatever there is after 10 s."""
        deadline = time.monotonic() + _END_S
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        while self._is_group_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        leftovers.kill_descendants()
        self._reader.join(_LOOK_S)

    def _is_group_alive(self) -> bool:
        self._process.poll()
        try:
            while os.waitpid(-self._process.pid, os.WNOHANG)[0]:  # of its group, what it has left to this process
                pass
            return True
        except ChildProcessError:
            return False


def _await_model(server: _Server, base_url: str, key: str, ready_s: float, stop: _StopFlag) -> str:
    """The first model that the server offers, once it answers."""
    deadline = time.monotonic() + ready_s
    while True:
        server.check(stop)
        try:
            model = _models(base_url, key)[0]
            break
        except IndexError:
            why = "it offers no model"
        except _UNREADY as error:
            why = quoted_line(str(error)) or type(error).__name__
        if time.monotonic() > deadline:
            raise AutoresearchError(
                f"the server has not answered at {base_url} for {ready_s:g} s: {why}",
                "read what it said, or give it longer with --ready-s",
            )
        time.sleep(_LOOK_S)
    with contextlib.suppress(*_UNREADY):
        _models(base_url, None)
        print("llm_server: it answers without the key, too: others on the network can use it", flush=True)
    return model


def _models(base_url: str, key: str | None) -> list[str]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{base_url}/models", headers=headers)
    with _DIRECT.open(request, timeout=_ANSWER_S) as response:
        return [str(model["id"]) for model in json.loads(response.read())["data"]]


def _claim(path: Path, replace: bool) -> None:
    """Remove what a dead server or an earlier life of this job has left. Raises ConfigError for anything else."""
    try:
        found = read_json(path)
        base_url, key, job_id = str(found["base_url"]), str(found["api_key"]), found["job_id"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError):
        raise ConfigError(f"{path} is there and tells of no server", "name another file, or remove it") from None
    alive = False
    if job_id is None or job_id != _job_id():
        with contextlib.suppress(*_UNREADY):
            _models(base_url, key)
            alive = True
    if not alive:
        _withdraw(path, key)
    elif not replace:
        whose = f"of job {job_id}" if job_id else "that is no job"
        raise ConfigError(
            f"{path} tells of a server {whose}, which answers at {base_url}",
            "end that one, name another file, or add --replace",
        )


def _withdraw(path: Path, key: str) -> None:
    """Remove the file if it still tells of the server with this key."""
    with contextlib.suppress(OSError, ValueError):
        if read_json(path).get("api_key") == key:
            path.unlink()


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """Files that this process makes in the block are its owner's alone from the beginning."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _job_id() -> str | None:
    return os.environ.get("SLURM_JOB_ID")


def _free_port() -> int:
    for port in random.sample(_PORTS, len(_PORTS)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port
    raise AutoresearchError(f"no port of {_PORTS.start} to {_PORTS.stop - 1} is free", "use another node")


def _node_name() -> str:
    """This node's name as others reach it: what Slurm calls it where that is an address, else its own idea."""
    if name := os.environ.get("SLURMD_NODENAME"):
        with contextlib.suppress(OSError):
            socket.getaddrinfo(name, None)
            return name
    full = socket.getfqdn()
    return socket.gethostname() if full.startswith("localhost") else full


def _replace(word: str, replaced: Mapping[str, str]) -> str:
    for name, value in replaced.items():  # not str.format: a server's options may be JSON
        word = word.replace(name, value)
    return word


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise ValueError(text)
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    own = words[: words.index("--")] if "--" in words else words
    parser = argparse.ArgumentParser(
        prog="python -m autoresearch_hpc.llm_server",
        usage="%(prog)s [options] ADDRESS_FILE -- COMMAND...",
        description="Run an OpenAI-compatible server and tell of it in a file that only its owner can read.",
        epilog="example: ... llm.json -- vllm serve MODEL --host 0.0.0.0 --port {port}   (also {host}, {key_file})",
    )
    parser.add_argument("address_file", type=Path, metavar="ADDRESS_FILE", help="what agents read")
    parser.add_argument("--host", help="this node's name as other nodes reach it")
    parser.add_argument("--ready-s", type=_seconds, default=_READY_S, help="how long it may take to load (%(default)s)")
    parser.add_argument("--replace", action="store_true", help="take over a file that tells of another live server")
    options = parser.parse_args(own)
    command = words[len(own) + 1 :]
    if not any("{port}" in word for word in command):
        parser.error("the command behind -- must have {port} where it takes its port")
    host = options.host or _node_name()
    serve(options.address_file.absolute(), command, host=host, ready_s=options.ready_s, replace=options.replace)


if __name__ == "__main__":
    sys.exit(exits.run(main))
