"""A preparation in a process of its own: a tokenizer in training takes memory that a controller would never give back.

    python -m autoresearch_hpc.data.apart      the corpus as JSON in, {"error": ...} or nothing out; progress as ever

The child ends with its parent, however that ends: its standard input is a pipe that stays open as long.
"""

import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

from autoresearch_hpc.config import CorpusConfig
from autoresearch_hpc.data import pipeline
from autoresearch_hpc.dataset import MANIFEST
from autoresearch_hpc.errors import ConfigError, DataError
from autoresearch_hpc.stopping import outliving_the_terminal


def prepare_apart(config: CorpusConfig) -> Path:
    """What `prepare` does and raises; in a child process, unless the data set is there."""
    if (config.path / MANIFEST).exists():
        return pipeline.prepare(config)
    words = [sys.executable, "-m", __name__]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as child:
        assert child.stdin
        assert child.stdout
        try:
            child.stdin.write(json.dumps(asdict(config)) + "\n")
            child.stdin.flush()
            said = child.stdout.read()
            code = child.wait()
        except BaseException:
            child.kill()
            raise
    if said:
        answer = json.loads(said)
        raise {"ConfigError": ConfigError, "DataError": DataError}[answer["kind"]](answer["error"])
    if code != 0:
        raise DataError(
            f"preparing {config.path} ended with status {code}", "run python -m autoresearch_hpc.prepare by itself"
        )
    return config.path


def _main() -> int:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.getLogger("autoresearch_hpc").addHandler(handler)
    logging.getLogger("autoresearch_hpc").setLevel(logging.INFO)
    config = CorpusConfig(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        pipeline.prepare(config)
    except ConfigError as error:
        kind = "DataError" if isinstance(error, DataError) else "ConfigError"
        print(json.dumps({"kind": kind, "error": str(error)}))
    except KeyboardInterrupt:  # the parent says so
        return 3
    return 0


def _end_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin: its lock would be in the way of the interpreter's end
        pass
    os._exit(3)


if __name__ == "__main__":
    with outliving_the_terminal():
        code = _main()
    sys.exit(code)
