"""The scripted server, asked by the client that agents use."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import llm_server
import openai
import pytest
from llm_server import (
    Reply,
    Script,
    ScriptedLlm,
    by_diff,
    by_edits,
    by_files,
    by_knobs,
    in_turn,
    is_result,
    proposals,
    words,
)

ASK: Any = {"model": "m", "messages": [{"role": "user", "content": "Hello?"}]}
Serve = Callable[..., tuple[ScriptedLlm, Any]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A server with this script (or these replies in turn) and a client of it that does not try again."""
    opened: list[Any] = []

    def serve(*script: Script | Reply, key: str | None = None, timeout: float = 10) -> tuple[ScriptedLlm, Any]:
        answer: Any = script[0] if callable(script[0]) else in_turn(*script)  # type: ignore[arg-type]
        server = ScriptedLlm(answer, api_key=key).__enter__()
        client = openai.OpenAI(base_url=server.base_url, api_key="secret", max_retries=0, timeout=timeout)
        opened.extend((client, server))
        return server, client

    yield serve
    for one in opened:
        one.__exit__(None, None, None)


def test_text(serve: Serve) -> None:
    server, client = serve(lambda request, number: Reply.text(f"{number}: {request['messages'][0]['content']}"))
    first, second = (client.chat.completions.create(**ASK, temperature=0.5) for _ in range(2))
    assert [one.choices[0].message.content for one in (first, second)] == ["0: Hello?", "1: Hello?"]
    assert (first.model, first.choices[0].finish_reason, first.usage.completion_tokens) == ("m", "stop", 3)
    assert first.usage.prompt_tokens > 0
    assert [one.number for one in server.requests] == [0, 1]
    assert server.questions == [ASK | {"temperature": 0.5}] * 2
    assert abs(server.requests[0].time - time.time()) < 60
    assert "secret" not in repr(server.requests)
    assert server.requests[0].headers["content-type"] == "application/json"


def test_usage_as_told(serve: Serve) -> None:
    usage = serve(Reply.text("x").costing(1000, 200))[1].chat.completions.create(**ASK).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (1000, 200, 1200)


def test_models(serve: Serve) -> None:
    server, client = serve(Reply.empty())
    assert [one.id for one in client.models.list()] == [llm_server.MODEL]
    assert [(one.number, one.path) for one in server.requests] == [(None, "/v1/models")]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, "BadRequestError"),
        (401, "AuthenticationError"),
        (408, "APIStatusError"),
        (429, "RateLimitError"),
        (500, "InternalServerError"),
        (503, "InternalServerError"),
        (418, "APIStatusError"),
    ],
)
def test_error(serve: Serve, status: int, error: str) -> None:
    with pytest.raises(getattr(openai, error)) as raised:
        serve(Reply.error(status, "Not now."))[1].chat.completions.create(**ASK)
    assert raised.value.status_code == status
    assert raised.value.body["message"] == "Not now."


def test_retry_after(serve: Serve) -> None:
    server, client = serve(Reply.error(429, retry_after_s=0.5), Reply.text("now"))
    answer = client.with_options(max_retries=1).chat.completions.create(**ASK)
    assert answer.choices[0].message.content == "now"
    first, second = server.requests
    assert second.time - first.time >= 0.5
    with pytest.raises(openai.RateLimitError) as raised:
        serve(Reply.error(429, retry_after_s=7))[1].chat.completions.create(**ASK)
    assert raised.value.response.headers["retry-after"] == "7"


def test_delay(serve: Serve) -> None:
    with pytest.raises(openai.APITimeoutError):
        serve(Reply.text("late").after(30), timeout=0.3)[1].chat.completions.create(**ASK)


def test_truncated(serve: Serve) -> None:
    choice = serve(Reply.truncated("0123456789"))[1].chat.completions.create(**ASK).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("01234", "length")
    assert Reply.truncated("0123456789", keep=2).content == "01"


def test_malformed(serve: Serve) -> None:
    with pytest.raises(json.JSONDecodeError):
        serve(Reply.malformed())[1].chat.completions.create(**ASK)


@pytest.mark.parametrize("stream", [False, True])
def test_dropped(serve: Serve, stream: bool) -> None:
    client = serve(Reply.dropped("x" * 200))[1]
    with pytest.raises(openai.APIConnectionError):
        list(client.chat.completions.create(**ASK, stream=stream))


def test_no_content(serve: Serve) -> None:
    replies = [Reply.empty(), Reply.null(), Reply.refused("No."), Reply.refused(as_content=True)]
    _, client = serve(*replies, Reply.no_choices())
    messages = [client.chat.completions.create(**ASK).choices[0].message for _ in replies]
    said = [(one.content, one.refusal) for one in messages]
    assert said == [("", None), (None, None), (None, "No."), ("I'm sorry, I can't help with that.", None)]
    assert client.chat.completions.create(**ASK).choices == []


def test_streaming(serve: Serve) -> None:
    text = "Grüße, " * 40
    _, client = serve(Reply.text(text))
    chunks = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == text
    assert (chunks[-2].choices[0].finish_reason, chunks[-1].usage.completion_tokens) == ("stop", 70)
    assert len(chunks) > 5
    bare = list(client.chat.completions.create(**ASK, stream=True))
    assert all(one.usage is None for one in bare)


def test_streamed_refusal(serve: Serve) -> None:
    chunks = list(serve(Reply.refused("No."))[1].chat.completions.create(**ASK, stream=True))
    assert [one.choices[0].delta.refusal for one in chunks] == [None, "No.", None]


def test_a_tool_call_and_its_result(serve: Serve) -> None:
    server, client = serve(Reply.calling("sh", cmd="ls"), Reply.text("Done."))
    asked = client.chat.completions.create(**ASK).choices[0]
    assert (asked.finish_reason, asked.message.content) == ("tool_calls", None)
    (call,) = asked.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("sh", {"cmd": "ls"})
    result = {"role": "tool", "tool_call_id": call.id, "content": "train.py"}
    client.chat.completions.create(model="m", messages=[*ASK["messages"], asked.message.to_dict(), result])
    assert [is_result(one) for one in server.questions] == [False, True]
    assert words(server.questions[1]) == "Hello?\ntrain.py"

    _, client = serve(Reply.calling("sh", cmd="ls"))
    chunks = list(client.chat.completions.create(**ASK, stream=True))
    assert [one.function.name for chunk in chunks for one in chunk.choices[0].delta.tool_calls or ()] == ["sh"]


def test_responses(serve: Serve) -> None:
    server, client = serve(
        Reply.text("Hi."), Reply.truncated("0123"), Reply.refused("No."), Reply.calling("sh", cmd="ls")
    )
    ask = {"model": "m", "instructions": "Be brief.", "input": [{"role": "user", "content": "Hello?"}]}
    said, cut, refused, call = (client.responses.create(**ask) for _ in range(4))
    assert (said.output_text, said.status) == ("Hi.", "completed")
    assert said.usage.total_tokens == said.usage.input_tokens + 1
    assert (cut.output_text, cut.status, cut.incomplete_details.reason) == ("01", "incomplete", "max_output_tokens")
    assert refused.output[0].content[0].refusal == "No."
    assert (call.output[0].name, json.loads(call.output[0].arguments)) == ("sh", {"cmd": "ls"})
    assert words(server.questions[0]) == "Be brief.\nHello?"
    result = {"type": "function_call_output", "call_id": call.output[0].call_id, "output": "train.py"}
    client.responses.create(model="m", input=[*ask["input"], call.output[0].to_dict(), result])
    assert [is_result(one) for one in server.questions] == [False] * 4 + [True]


def test_streamed_responses(serve: Serve) -> None:
    text = "Grüße, " * 40
    _, client = serve(Reply.text(text), Reply.dropped(text), Reply.error(503))
    events = list(client.responses.create(model="m", input="Hello?", stream=True))
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == text
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert events[-1].response.output_text == text
    with pytest.raises(openai.APIConnectionError):
        list(client.responses.create(model="m", input="Hello?", stream=True))
    with pytest.raises(openai.InternalServerError):
        client.responses.create(model="m", input="Hello?", stream=True)


def test_key(serve: Serve) -> None:
    server, client = serve(Reply.text("in"), key="secret")
    assert client.chat.completions.create(**ASK).choices[0].message.content == "in"
    stranger = client.with_options(api_key="other")
    for ask in (lambda: stranger.chat.completions.create(**ASK), lambda: list(stranger.models.list())):
        with pytest.raises(openai.AuthenticationError):
            ask()
    assert [one.number for one in server.requests] == [0, None, None]
    with urllib.request.urlopen(server.base_url.removesuffix("/v1") + "/health") as health:
        assert health.status == 200


def test_many_at_once(serve: Serve) -> None:
    meeting = threading.Barrier(16, timeout=10)

    def answer(request: dict[str, Any], number: int) -> Reply:
        meeting.wait()  # none is answered before all have asked
        return Reply.text(str(number))

    _, client = serve(answer)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: client.chat.completions.create(**ASK), range(16)))
    assert sorted(int(one.choices[0].message.content) for one in answers) == list(range(16))


def test_a_script_that_fails_is_heard_of() -> None:
    def answer(request: dict[str, Any], number: int) -> Reply:
        raise KeyError("lost")

    def ask() -> None:
        with ScriptedLlm(answer) as server, openai.OpenAI(base_url=server.base_url, api_key="x") as client:
            with pytest.raises(openai.InternalServerError, match="lost"):
                client.with_options(max_retries=0).chat.completions.create(**ASK)

    with pytest.raises(KeyError, match="lost"):
        ask()


def test_other_paths_and_bodies(serve: Serve) -> None:
    server, client = serve(Reply.text("x"))
    with pytest.raises(openai.NotFoundError):
        client.post("/nothing", cast_to=object, body={})
    with pytest.raises(openai.BadRequestError):
        client.post("/chat/completions", cast_to=object, body=[1])
    assert server.questions == []


def test_leaving_ends_a_delay() -> None:
    start = time.monotonic()
    with ScriptedLlm(in_turn(Reply.text("late").after(60))) as server, ThreadPoolExecutor(1) as pool:
        with openai.OpenAI(base_url=server.base_url, api_key="x", max_retries=0) as client:
            late = pool.submit(client.chat.completions.create, **ASK)
            while not server.requests:
                time.sleep(0.01)
            server.__exit__(None)
            assert late.result(10).choices[0].message.content == "late"
    assert time.monotonic() - start < 20


def test_proposals() -> None:
    old, new = "LR = 0.1\nx = 1\n", "LR = 0.2\nx = 1\n"
    items = json.loads(
        proposals(
            by_knobs("a", LR=0.2),
            by_edits("b", ("fit.py", "0.1", "0.2"), reasoning="Why not?"),
            by_diff("c", "fit.py", old, new),
            by_files("d", {"fit.py": new}),
        )
    )["proposals"]
    assert [set(one) - {"title", "reasoning"} for one in items] == [{"knobs"}, {"edits"}, {"diff"}, {"files"}]
    assert items[0]["knobs"] == {"LR": 0.2}
    assert items[1]["edits"] == [{"path": "fit.py", "search": "0.1", "replace": "0.2"}]
    assert items[2]["diff"] == "--- a/fit.py\n+++ b/fit.py\n@@ -1,2 +1,2 @@\n-LR = 0.1\n+LR = 0.2\n x = 1\n"
    assert items[3]["files"] == {"fit.py": new}


@pytest.mark.parametrize("words", [["--api-key", "secret"], []], ids=["option", "variable"])
def test_program(tmp_path: Path, words: list[str]) -> None:
    script, log = tmp_path / "it's a script.py", tmp_path / "log"
    script.write_text(
        "from llm_server import Reply\n\n\ndef answer(request, number):\n    return Reply.text(str(number))\n"
    )
    argv = [sys.executable, llm_server.__file__, "--script", str(script), "--log", str(log), *words]
    environment = {**os.environ, "VLLM_API_KEY": "other" if words else "secret"}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as program:
        try:
            port = int(program.stdout.readline()) if program.stdout else 0
            with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="secret", max_retries=0) as client:
                assert client.chat.completions.create(**ASK).choices[0].message.content == "0"
                with pytest.raises(openai.AuthenticationError):
                    client.with_options(api_key="wrong").chat.completions.create(**ASK)
        finally:
            program.terminate()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(one["number"], one["body"]["messages"]) for one in lines] == [
        (0, ASK["messages"]),
        (None, ASK["messages"]),
    ]
    assert "secret" not in log.read_text()
