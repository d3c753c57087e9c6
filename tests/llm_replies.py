"""What a scripted language model answers: replies, faults among them, and the proposals that agents understand."""

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the server sends for one request.

    `body` replaces all of a 200's JSON. `call` is a tool's name and the JSON of its arguments. Tokens that are None are
    estimated from the texts.
    """

    content: str | None = None
    refusal: str | None = None
    call: tuple[str, str] | None = None
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
    def calling(cls, tool: str, **arguments: object) -> Self:
        """The model asks its client to use a tool, as coding agents do."""
        return cls(call=(tool, json.dumps(arguments)), finish_reason="tool_calls")

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


def words(request: Mapping[str, Any]) -> str:
    """All that a request says to the model, system prompt and results of tools included, one text after the other."""
    parts = [request.get("instructions"), *_listed(request.get("messages")), *_listed(request.get("input"))]
    return "\n".join(text for part in parts for text in _texts(part))


def is_result(request: Mapping[str, Any]) -> bool:
    """Whether the request's last word is what a tool gave back."""
    last = [*_listed(request.get("messages")), *_listed(request.get("input"))][-1]
    return isinstance(last, dict) and (last.get("role") == "tool" or last.get("type") == "function_call_output")


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _texts(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    elif isinstance(part, dict):
        for inner in ("text", "content", "output"):
            for one in _listed(part.get(inner)):
                yield from _texts(one)


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
