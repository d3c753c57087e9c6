"""The `climbmix` corpus: parquet shards of a public data set on the Hugging Face hub.

Shards lie in one folder that all data sets of `corpus.dir` share, and are fetched only where they are not there yet:
a node without a network can prepare what a login node has fetched.
"""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from autoresearch_hpc.config import CorpusConfig
from autoresearch_hpc.data import texts
from autoresearch_hpc.data.progress import Progress
from autoresearch_hpc.dataset import Split
from autoresearch_hpc.errors import DataError

_log = logging.getLogger(__name__)

REPO = "karpathy/climbmix-400b-shuffle"
_VAL_SHARD = 6542  # the last one. Source: karpathy/autoresearch and nanochat pin it
_TEXT_KEY = "text"
_PAUSES_S = (1.0, 4.0, 16.0, None)  # after each try that failed; None: that was the last


class ClimbmixCorpus:
    """The first `shards` shards for training, the pinned last one for validation."""

    def __init__(self, config: CorpusConfig) -> None:
        if not 1 <= config.shards <= _VAL_SHARD:
            raise DataError(f"corpus.shards={config.shards}", f"give 1 to {_VAL_SHARD}")
        self._endpoint = config.endpoint
        self._folder = Path(config.dir) / "climbmix-shards"
        self._train = [f"shard_{i:05d}.parquet" for i in range(config.shards)]
        self._val = [f"shard_{_VAL_SHARD:05d}.parquet"]

    @property
    def source(self) -> str:
        return f"{REPO}, {len(self._train)} shards"

    def fetch(self, progress: Progress) -> None:
        """Raises DataError where a shard cannot be had."""
        missing = [name for name in (*self._val, *self._train) if not (self._folder / name).is_file()]
        if not missing:
            return
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # its bars would break ours
        from huggingface_hub import constants
        from huggingface_hub.utils import logging as hub_logging

        hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # as would its word on every attempt
        where = self._endpoint or constants.ENDPOINT
        _log.info("downloading %d shards from %s to %s", len(missing), where, self._folder)
        with progress.stage("download", len(missing), "shards") as advance:
            for name in missing:
                self._download(name, where)
                advance(1)

    def fingerprint(self) -> str:
        sizes = [(self._folder / name).stat().st_size for name in (*self._val, *self._train)]
        return " ".join(map(str, sizes))

    def documents(self, split: Split) -> Iterator[str]:
        for name in self._names(split):
            yield from texts.documents(self._folder / name, _TEXT_KEY)

    def num_bytes(self, split: Split) -> int | None:
        sizes = [texts.num_text_bytes(self._folder / name, _TEXT_KEY) for name in self._names(split)]
        return sum(size or 0 for size in sizes) or None

    def _names(self, split: Split) -> list[str]:
        return self._val if split == "val" else self._train

    def _download(self, name: str, where: str) -> None:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        self._folder.mkdir(parents=True, exist_ok=True)
        for pause_s in _PAUSES_S:
            try:
                # A connection that breaks off is taken up again inside; the file appears only when complete.
                hf_hub_download(REPO, name, repo_type="dataset", local_dir=self._folder, endpoint=self._endpoint)
                return
            except _network_errors() as error:
                unreachable = isinstance(error, LocalEntryNotFoundError)  # after several attempts of its own
                cause = error.__cause__ if unreachable and error.__cause__ else error
                what = (str(cause).strip() or type(cause).__name__).splitlines()[0]
                status = getattr(getattr(error, "response", None), "status_code", None)
                if pause_s is None or unreachable or constants.HF_HUB_OFFLINE or status in (401, 403, 404):
                    raise DataError(
                        f"cannot download {name} of {REPO} from {where}: {what}",
                        "run the same command where there is internet, on a login node for one; what is there is kept",
                    ) from error
                _log.info("download of %s failed (%s): trying again in %.0f s", name, what, pause_s)
                time.sleep(pause_s)


def _network_errors() -> tuple[type[Exception], ...]:
    """What the hub's client lets through. Its HTTP library differs between versions: ask which one it builds upon."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, RuntimeError, *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)))
