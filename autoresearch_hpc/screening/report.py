"""What a check's child said, believed as far as it makes sense, and in words."""

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoresearch_hpc.quoting import quoted, quoted_line

STAGES = ("shapes", "steps", "dry")
_NUMBERS = ("parameter_bytes", "forward_flops", "device_batch_size")
_OPTIONAL = ("activations_of_1", "activations_of_2")
# Those by which limits and the kernel's lack of memory end a process say nothing of a script; these do.
_FAULTS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE}
_NO_ROOM = re.compile("allocate memory|bad_alloc|Thread creation failed|Resource temporarily unavailable")
_IN_WORDS = {
    "shapes": "{script} fails where its model is built and run once, forward and backward",
    "steps": "{script} fails in a first training step (tried on shapes alone)",
    "dry": "{script} fails in a first training step on the CPU, tried with one row a step{cut}",
}
_MAX_TAIL = 3_000
_MAX_NUMBER = 1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`failed_in` is the stage that failed, "" where none did. `shapes`: see `memory.estimate`."""

    failed_in: str = ""
    type: str = ""
    message: str = ""
    tail: str = ""
    rows_of: int | None = None  # tokens, of the dry run
    depth: int | None = None  # layers, where their number was changed for it
    shapes: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> "Report":
        """The report of a supervisor's answer: all that comes from the child may be anything."""
        stage, dry, shapes, failed, done = "", dict[str, Any](), None, None, False
        for said in answer["said"]:
            if said.get("stage") in STAGES:
                stage = said["stage"]
                dry = said
            shapes = _shapes(said.get("shapes")) or shapes
            failed = said["failed"] if isinstance(said.get("failed"), dict) else failed
            done = done or said.get("done") is True
        if failed is None and stage and not done:
            failed = _unsaid(answer["ended"], answer["output"])
        if failed is None:
            return cls(shapes=shapes)
        return cls(
            failed_in=stage,
            type=quoted_line(str(failed.get("type", "")), 100),
            message=quoted(str(failed.get("message", "")), max_lines=12, max_chars=1_500),
            tail=quoted(str(failed.get("tail", "")), max_lines=16, max_chars=_MAX_TAIL),
            rows_of=_whole(dry.get("rows_of")),
            depth=_whole(dry.get("depth")),
            shapes=shapes,
        )

    def words(self, script: str) -> str:
        """What is wrong, for whoever made the edit."""
        cut = "" if self.rows_of is None else f" of {self.rows_of} tokens"
        cut += "" if self.depth is None else f" and DEPTH = {self.depth}"
        where = _IN_WORDS[self.failed_in].format(script=script, cut=cut)
        what = f"{self.type}: {self.message}" if self.message else self.type
        return f"{where}: {what}" + (f"\n\n{self.tail}" if self.tail else "")


def _unsaid(ended: str, output: str) -> dict[str, str] | None:
    """The failure of a child that ended without a word; None where it was ended."""
    kind, _, number = ended.partition(" ")
    if _NO_ROOM.search(output):
        return None
    if kind == "exit":
        return {"type": "Exit", "message": f"the script ended its process with code {number}", "tail": output}
    if kind == "signal" and int(number) in _FAULTS:
        return {
            "type": "Signal",
            "message": f"the process ended with {signal.Signals(int(number)).name}",
            "tail": output,
        }
    return None


def _whole(said: object) -> int | None:
    return said if type(said) is int and 0 <= said < _MAX_NUMBER else None


def _shapes(said: object) -> Mapping[str, Any] | None:
    """The child's measures, where they are what they should be."""
    if not isinstance(said, dict):
        return None
    values = [said.get(name) for name in _NUMBERS] + [said[n] for n in _OPTIONAL if said.get(n) is not None]
    good = all(isinstance(v, int | float) and 0 <= v < _MAX_NUMBER for v in values)
    return {name: said.get(name) for name in (*_NUMBERS, *_OPTIONAL)} if good else None
