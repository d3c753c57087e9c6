"""An OpenAI-compatible server on loopback whose answers are scripted, faults included.

In a test: `with ScriptedLlm(script) as server: ... server.base_url, server.requests`. As a program, for another process
to ask: `python tests/llm_server.py --script FILE.py --port N --log FILE`, where FILE.py defines `answer`; it prints its
port and runs until it is killed. A script is `answer(request, number) -> Reply`: the request's JSON and how many there
were before it. Scripts run in several threads at once.

It knows POST /v1/chat/completions (whole or as server-sent events), GET /v1/models and GET /health. With a key
(program: --api-key or VLLM_API_KEY) it answers 401 to requests without `Authorization: Bearer KEY`, /health apart, as
vLLM does. The log has one JSON object a line: the fields of `Request`. Keys are neither kept nor logged.
"""

import argparse
import difflib
import json
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

MODEL = "scripted"
_SECRET = frozenset({"authorization", "x-api-key", "api-key"})
_ERRORS = {
    400: ("invalid_request_error", "bad_request", "The request is not valid."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    404: ("invalid_request_error", "not_found", "There is no such path."),
    408: ("timeout_error", "timeout", "The request timed out."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
    500: ("server_error", "internal_error", "The server had an error while processing your request."),
    503: ("server_error", "overloaded", "The engine is currently overloaded, please try again later."),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the server sends for one request. `body` replaces all of a 200's JSON; None tokens are estimated."""

    content: str | None = None
    refusal: str | None = None
    finish_reason: str = "stop"
    has_choices: bool = True
    status: int = 200
    message: str | None = None
    retry_after_s: float | None = None
    body: bytes | None = None
    is_dropped: bool = False
    delay_s: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    @classmethod
    def text(cls, content: str) -> Self:
        """A normal answer."""
        return cls(content=content)

    @classmethod
    def error(cls, status: int, message: str | None = None, *, retry_after_s: float | None = None) -> Self:
        """An error status with a body as OpenAI shapes it."""
        return cls(status=status, message=message, retry_after_s=retry_after_s)

    @classmethod
    def truncated(cls, content: str, *, keep: int | None = None) -> Self:
        """The output limit came first: the first `keep` characters (default: half), finish_reason "length"."""
        return cls(content=content[: len(content) // 2 if keep is None else keep], finish_reason="length")

    @classmethod
    def malformed(cls, body: str = '{"id": "chatcmpl-1", "choices": [{"mess') -> Self:
        """Status 200 and a body that is no JSON."""
        return cls(body=body.encode())

    @classmethod
    def dropped(cls, content: str = "This sentence is never") -> Self:
        """The connection ends in the middle of the body."""
        return cls(content=content, is_dropped=True)

    @classmethod
    def empty(cls) -> Self:
        return cls(content="")

    @classmethod
    def null(cls) -> Self:
        """No content at all, nor a refusal."""
        return cls()

    @classmethod
    def refused(cls, refusal: str = "I'm sorry, I can't help with that.", *, as_content: bool = False) -> Self:
        """The model declines: in message.refusal, or in so many words."""
        return cls(content=refusal) if as_content else cls(refusal=refusal)

    @classmethod
    def no_choices(cls) -> Self:
        return cls(has_choices=False)

    def after(self, delay_s: float) -> "Reply":
        """The same, later."""
        return replace(self, delay_s=delay_s)

    def costing(self, prompt_tokens: int, completion_tokens: int) -> "Reply":
        """The same with these usage figures."""
        return replace(self, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)


Script = Callable[[dict[str, Any], int], Reply]


def in_turn(*replies: Reply) -> Script:
    """One after the other, the last for ever."""
    return lambda request, number: replies[min(number, len(replies) - 1)]


# what agents understand


def proposals(*items: Mapping[str, object]) -> str:
    """The JSON text of an answer."""
    return json.dumps({"proposals": items})


def by_knobs(title: str, reasoning: str = "It may help.", **knobs: object) -> dict[str, object]:
    return {"title": title, "reasoning": reasoning, "knobs": knobs}


def by_edits(title: str, *edits: tuple[str, str, str], reasoning: str = "It may help.") -> dict[str, object]:
    """Edits are (path, text to search, its replacement)."""
    return {
        "title": title,
        "reasoning": reasoning,
        "edits": [dict(zip(("path", "search", "replace"), edit, strict=True)) for edit in edits],
    }


def by_diff(title: str, path: str, old: str, new: str, reasoning: str = "It may help.") -> dict[str, object]:
    """A unified diff that turns one text of the file into the other."""
    lines = difflib.unified_diff(old.splitlines(True), new.splitlines(True), f"a/{path}", f"b/{path}")
    return {"title": title, "reasoning": reasoning, "diff": "".join(lines)}


def by_files(title: str, files: Mapping[str, str], reasoning: str = "It may help.") -> dict[str, object]:
    """Path -> whole new text."""
    return {"title": title, "reasoning": reasoning, "files": dict(files)}


# the server


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request. `number` is None for those that no script answers; `body` is None where it is no JSON object."""

    number: int | None
    time: float
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any] | None


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
    def questions(self) -> list[dict[str, Any]]:
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

    def answer(self, request: dict[str, Any], number: int) -> Reply:
        try:
            return self._script(request, number)
        except Exception as error:  # noqa: BLE001 - whatever a script does, its test hears of it
            with self._lock:
                self._failure = self._failure or error
            return Reply.error(500, f"the script failed: {error!r}")


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
        is_question = admitted and body is not None and (self.command, path) == ("POST", "/v1/chat/completions")
        request = llm.record(self.command, path, headers, body, is_question=is_question)
        if not admitted:
            self._send_error(Reply.error(401))
        elif request.number is not None and body is not None:
            reply = llm.answer(body, request.number)
            llm.stopping.wait(reply.delay_s)
            self._send_reply(reply, body, request.number)
        elif (self.command, path) == ("GET", "/v1/models"):
            model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "tests", "max_model_len": 131072}
            self._send(200, json.dumps({"object": "list", "data": [model]}).encode())
        elif (self.command, path) == ("GET", "/health"):
            self._send(200, b"")
        else:
            self._send_error(Reply.error(400 if path == "/v1/chat/completions" else 404))

    def _send_reply(self, reply: Reply, request: dict[str, Any], number: int) -> None:
        if reply.status != 200:
            return self._send_error(reply)
        if reply.body is not None:
            return self._send(200, reply.body)
        head = {"id": f"chatcmpl-{number}", "created": int(time.time()), "model": request.get("model", MODEL)}
        if request.get("stream"):
            return self._send_events(list(_chunks(head, reply, request)), is_dropped=reply.is_dropped)
        message = {"role": "assistant", "content": reply.content, "refusal": reply.refusal}
        choice = {"message": message, "logprobs": None, "finish_reason": reply.finish_reason}
        choices = [{"index": i, **choice} for i in range(request.get("n") or 1)] if reply.has_choices else []
        whole = head | {"object": "chat.completion", "choices": choices, "usage": _usage(reply, request)}
        return self._send(200, json.dumps(whole).encode(), is_dropped=reply.is_dropped)

    def _send_error(self, reply: Reply) -> None:
        kind, code, said = _ERRORS.get(reply.status, ("server_error", "error", f"Status {reply.status}."))
        error = {"message": reply.message or said, "type": kind, "param": None, "code": code}
        after = {} if reply.retry_after_s is None else {"Retry-After": f"{reply.retry_after_s:g}"}
        self._send(reply.status, json.dumps({"error": error}).encode(), after)

    def _send(
        self, status: int, body: bytes, more: Mapping[str, str] | None = None, *, is_dropped: bool = False
    ) -> None:
        self._start(status, {"Content-Type": "application/json", "Content-Length": str(len(body)), **(more or {})})
        self.wfile.write(body[: len(body) // 2] if is_dropped else body)

    def _send_events(self, events: list[dict[str, Any]], *, is_dropped: bool) -> None:
        self._start(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        for event in events[: len(events) // 2] if is_dropped else [*events, None]:
            data = b"data: %s\n\n" % (b"[DONE]" if event is None else json.dumps(event).encode())
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        if not is_dropped:
            self.wfile.write(b"0\r\n\r\n")

    def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()


def _chunks(head: dict[str, Any], reply: Reply, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events of a streamed answer."""

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return head | {"object": "chat.completion.chunk", "choices": [choice] if reply.has_choices else []}

    yield chunk({"role": "assistant", "content": "" if reply.content is not None else None})
    text, step = reply.content or "", 40
    yield from (chunk({"content": text[i : i + step]}) for i in range(0, len(text), step))
    if reply.refusal is not None:
        yield chunk({"refusal": reply.refusal})
    yield chunk({}, reply.finish_reason)
    if (request.get("stream_options") or {}).get("include_usage"):
        yield head | {"object": "chat.completion.chunk", "choices": [], "usage": _usage(reply, request)}


def _usage(reply: Reply, request: dict[str, Any]) -> dict[str, int]:
    """Where the reply does not say: about four characters a token."""
    asked = (
        -(-len(json.dumps(request.get("messages", ""))) // 4) if reply.prompt_tokens is None else reply.prompt_tokens
    )
    said = -(-len(reply.content or "") // 4) if reply.completion_tokens is None else reply.completion_tokens
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


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
