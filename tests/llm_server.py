"""An OpenAI-compatible server on loopback whose answers are scripted, faults included.

In a test: `with ScriptedLlm(script) as server: ... server.base_url, server.requests`. As a program, for another process
to ask: `python tests/llm_server.py --script FILE.py --port N --log FILE`, where FILE.py defines `answer`; it prints its
port and runs until it is killed. A script is `answer(request, number) -> Reply`: the request's JSON and how many there
were before it. Scripts run in several threads at once.

It knows POST /v1/chat/completions and /v1/responses (whole or as server-sent events), GET /v1/models and GET /health.
With a key (program: --api-key or VLLM_API_KEY) it answers 401 to requests without `Authorization: Bearer KEY`, /health
apart, as vLLM does. The log has one JSON object a line: the fields of `Request`. Keys are neither kept nor logged.
"""

import argparse
import json
import os
import runpy
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import llm_wire
from llm_replies import (
    Reply,
    Script,
    by_diff,
    by_edits,
    by_files,
    by_knobs,
    in_turn,
    is_result,
    proposals,
    words,
)
from llm_wire import MODEL, Json

__all__ = [
    "MODEL",
    "Reply",
    "Request",
    "Script",
    "ScriptedLlm",
    "by_diff",
    "by_edits",
    "by_files",
    "by_knobs",
    "in_turn",
    "is_result",
    "proposals",
    "words",
]

_SECRET = frozenset({"authorization", "x-api-key", "api-key"})
_APIS = {
    "/v1/chat/completions": (llm_wire.completion, llm_wire.completion_events),
    "/v1/responses": (llm_wire.response, llm_wire.response_events),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request. `number` is None for those that no script answers; `body` is None where it is no JSON object."""

    number: int | None
    time: float
    method: str
    path: str
    headers: dict[str, str]
    body: Json | None


class ScriptedLlm:
    """Listens while the context is open. An exception in a script is a status 500, and raised again on leaving."""

    def __init__(self, script: Script, *, api_key: str | None = None, log: Path | None = None, port: int = 0) -> None:
        self._script, self._key, self._log = script, api_key, log
        self._lock, self.stopping = threading.Lock(), threading.Event()
        self._requests: list[Request] = []
        self._asked = 0
        self._failure: Exception | None = None
        self._http = _Server(("127.0.0.1", port), self)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self.port: int = self._http.server_address[1]
        self.base_url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()  # waits for the answers under way, which no longer delay
        self._thread.join()
        if kind is None and self._failure is not None:
            raise self._failure

    @property
    def requests(self) -> list[Request]:
        """All so far, in the order in which they came."""
        with self._lock:
            return list(self._requests)

    @property
    def questions(self) -> list[Json]:
        """The bodies that the script has been asked to answer."""
        return [one.body for one in self.requests if one.number is not None and one.body is not None]

    def admits(self, headers: Mapping[str, str]) -> bool:
        return self._key is None or headers.get("authorization") == f"Bearer {self._key}"

    def record(self, method: str, path: str, headers: Mapping[str, str], body: Any, *, is_question: bool) -> Request:
        with self._lock:
            number = self._asked if is_question else None
            self._asked += is_question
            shown = {name: value for name, value in headers.items() if name not in _SECRET}
            made = Request(number=number, time=time.time(), method=method, path=path, headers=shown, body=body)
            self._requests.append(made)
            if self._log is not None:
                with self._log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(made)) + "\n")
        return made

    def answer(self, request: Json, number: int) -> Reply:
        try:
            return self._script(request, number)
        except Exception as error:  # noqa: BLE001 - whatever a script does, its test hears of it
            with self._lock:
                self._failure = self._failure or error
            return Reply.error(500, f"the script failed: {error!r}")


def _encoded(value: Json) -> bytes:
    return json.dumps(value).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], llm: ScriptedLlm) -> None:
        self.llm = llm
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients may go away before they have their answer
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10  # an idle connection does not keep the server from ending
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _serve(self, raw: bytes) -> None:
        llm, path = self.server.llm, self.path.split("?")[0]
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        body = body if isinstance(body, dict) else None
        admitted = llm.admits(headers) or path == "/health"
        is_question = admitted and body is not None and self.command == "POST" and path in _APIS
        request = llm.record(self.command, path, headers, body, is_question=is_question)
        if not admitted:
            self._send_error(Reply.error(401))
        elif request.number is not None and body is not None:
            reply = llm.answer(body, request.number)
            llm.stopping.wait(reply.delay_s)
            self._send_reply(reply, body, request.number, path)
        elif (self.command, path) == ("GET", "/v1/models"):
            self._send(200, _encoded(llm_wire.models()))
        elif (self.command, path) == ("GET", "/health"):
            self._send(200, b"")
        else:
            self._send_error(Reply.error(400 if path in _APIS else 404))

    def _send_reply(self, reply: Reply, request: Json, number: int, path: str) -> None:
        if reply.status != 200:
            return self._send_error(reply)
        if reply.body is not None:
            return self._send(200, reply.body)
        whole, events = _APIS[path]
        if request.get("stream"):
            return self._send_events(list(events(reply, request, number)), is_dropped=reply.is_dropped)
        return self._send(200, _encoded(whole(reply, request, number)), is_dropped=reply.is_dropped)

    def _send_error(self, reply: Reply) -> None:
        after = {} if reply.retry_after_s is None else {"Retry-After": f"{reply.retry_after_s:g}"}
        self._send(reply.status, _encoded(llm_wire.error(reply)), after)

    def _send(
        self, status: int, body: bytes, more: Mapping[str, str] | None = None, *, is_dropped: bool = False
    ) -> None:
        self._start(status, {"Content-Type": "application/json", "Content-Length": str(len(body)), **(more or {})})
        self.wfile.write(body[: len(body) // 2] if is_dropped else body)

    def _send_events(self, events: list[Json], *, is_dropped: bool) -> None:
        self._start(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        for event in events[: len(events) // 2] if is_dropped else events:
            name = b"event: %s\n" % event["type"].encode() if "type" in event else b""
            self._send_chunk(b"%sdata: %s\n\n" % (name, _encoded(event)))
        if not is_dropped:
            if "type" not in events[-1]:
                self._send_chunk(b"data: [DONE]\n\n")
            self._send_chunk(b"")

    def _send_chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()


def main() -> None:
    parser = argparse.ArgumentParser(description="A scripted OpenAI-compatible server on 127.0.0.1.")
    parser.add_argument("--script", type=Path, required=True, help="a Python file that defines answer(request, number)")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one; it is printed")
    parser.add_argument("--log", type=Path, help="append each request to this file")
    parser.add_argument("--api-key", default=os.environ.get("VLLM_API_KEY"), help="demand this key")
    given = parser.parse_args()
    script = runpy.run_path(str(given.script))["answer"]
    with ScriptedLlm(script, api_key=given.api_key, log=given.log, port=given.port) as server:
        print(server.port, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
