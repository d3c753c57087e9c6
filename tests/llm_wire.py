"""How a scripted reply looks on the wire: OpenAI's chat completions and responses, whole and as server-sent events."""

import json
import time
from collections.abc import Iterator
from typing import Any

from llm_replies import Reply

MODEL = "scripted"
_ERRORS = {
    400: ("invalid_request_error", "bad_request", "The request is not valid."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    404: ("invalid_request_error", "not_found", "There is no such path."),
    408: ("timeout_error", "timeout", "The request timed out."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
    500: ("server_error", "internal_error", "The server had an error while processing your request."),
    503: ("server_error", "overloaded", "The engine is currently overloaded, please try again later."),
}

Json = dict[str, Any]


def error(reply: Reply) -> Json:
    """The body of an error status."""
    kind, code, said = _ERRORS.get(reply.status, ("server_error", "error", f"Status {reply.status}."))
    return {"error": {"message": reply.message or said, "type": kind, "param": None, "code": code}}


def models() -> Json:
    model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "tests", "max_model_len": 131072}
    return {"object": "list", "data": [model]}


def _tokens(reply: Reply, request: Json) -> tuple[int, int]:
    """Of the prompt and of the answer; where the reply does not say, about four characters a token."""
    asked, said = json.dumps(request.get("messages", request.get("input"))), f"{reply.content or ''}{reply.call or ''}"
    return (
        -(-len(asked) // 4) if reply.prompt_tokens is None else reply.prompt_tokens,
        -(-len(said) // 4) if reply.completion_tokens is None else reply.completion_tokens,
    )


# chat completions


def completion(reply: Reply, request: Json, number: int) -> Json:
    message: Json = {"role": "assistant", "content": reply.content, "refusal": reply.refusal}
    if reply.call is not None:
        message["tool_calls"] = [_tool_call(reply.call, number)]
    choice = {"message": message, "logprobs": None, "finish_reason": reply.finish_reason}
    choices = [{"index": i, **choice} for i in range(request.get("n") or 1)] if reply.has_choices else []
    return _head(request, number) | {
        "object": "chat.completion",
        "choices": choices,
        "usage": _usage(reply, request),
    }


def completion_events(reply: Reply, request: Json, number: int) -> Iterator[Json]:
    head = _head(request, number) | {"object": "chat.completion.chunk"}

    def chunk(delta: Json, finish_reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return head | {"choices": [choice] if reply.has_choices else []}

    yield chunk({"role": "assistant", "content": "" if reply.content is not None else None})
    yield from (chunk({"content": piece}) for piece in _pieces(reply.content or ""))
    if reply.refusal is not None:
        yield chunk({"refusal": reply.refusal})
    if reply.call is not None:
        yield chunk({"tool_calls": [{"index": 0, **_tool_call(reply.call, number)}]})
    yield chunk({}, reply.finish_reason)
    if (request.get("stream_options") or {}).get("include_usage"):
        yield head | {"choices": [], "usage": _usage(reply, request)}


def _head(request: Json, number: int) -> Json:
    return {"id": f"chatcmpl-{number}", "created": int(time.time()), "model": request.get("model", MODEL)}


def _tool_call(call: tuple[str, str], number: int) -> Json:
    return {"id": f"call_{number}", "type": "function", "function": {"name": call[0], "arguments": call[1]}}


def _usage(reply: Reply, request: Json) -> Json:
    asked, said = _tokens(reply, request)
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


def _pieces(text: str, step: int = 40) -> Iterator[str]:
    return (text[i : i + step] for i in range(0, len(text), step))


# responses


def response(reply: Reply, request: Json, number: int) -> Json:
    asked, said = _tokens(reply, request)
    cut = reply.finish_reason == "length"
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": int(time.time()),
        "model": request.get("model", MODEL),
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "error": None,
        "output": _output(reply, number),
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": asked,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": said,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": asked + said,
        },
    }


def response_events(reply: Reply, request: Json, number: int) -> Iterator[Json]:
    whole = response(reply, request, number)
    events: list[Json] = [
        {"type": "response.created", "response": whole | {"status": "in_progress", "output": [], "usage": None}}
    ]
    for item in whole["output"]:
        place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        events.append({"type": "response.output_item.added", "output_index": 0, "item": item | {"content": []}})
        for piece in _pieces(reply.content or ""):
            events.append({"type": "response.output_text.delta", "delta": piece, "logprobs": [], **place})
        events.append({"type": "response.output_item.done", "output_index": 0, "item": item})
    events.append({"type": f"response.{whole['status']}", "response": whole})
    yield from ({**event, "sequence_number": i} for i, event in enumerate(events))


def _output(reply: Reply, number: int) -> list[Json]:
    if not reply.has_choices:
        return []
    if reply.call is not None:
        call = {"type": "function_call", "id": f"fc_{number}", "call_id": f"call_{number}", "status": "completed"}
        return [call | {"name": reply.call[0], "arguments": reply.call[1]}]
    said: list[Json] = []
    if reply.content is not None:
        said.append({"type": "output_text", "text": reply.content, "annotations": []})
    if reply.refusal is not None:
        said.append({"type": "refusal", "refusal": reply.refusal})
    return [{"type": "message", "id": f"msg_{number}", "role": "assistant", "status": "completed", "content": said}]
