"""Where the text comes from: the `python` and `files` corpora, and what every corpus must offer.

A corpus yields documents in a fixed order, the validation split's and the training split's; it knows nothing of
tokens. Which documents are held out depends on their name or their content, never on chance or on the machine.
"""

import glob
import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from autoresearch_hpc.config import CorpusConfig
from autoresearch_hpc.data import texts
from autoresearch_hpc.data.progress import Progress
from autoresearch_hpc.dataset import Split
from autoresearch_hpc.errors import DataError
from autoresearch_hpc.files import sha256_text

_MB = 1_000_000
_MAX_VAL_SHARE = 0.1  # of the text, however small it is
_NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__"}


class Corpus(Protocol):
    """Text in two splits. `fetch` comes first and may take long; after it nothing needs a network."""

    @property
    def source(self) -> str:
        """Where the text is from, one line for people."""

    def fetch(self, progress: Progress) -> None: ...

    def fingerprint(self) -> str:
        """Changes when the text may have changed: half-done work of another fingerprint is thrown away."""

    def documents(self, split: Split) -> Iterator[str]: ...

    def num_bytes(self, split: Split) -> int | None:
        """Roughly how much text there is, for progress bars; None where nobody knows."""


def key(data: bytes) -> int:
    """64 bits of SHA-256: a document's place in every order, the same on every machine."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8])


def utf8(text: str) -> bytes:
    """The text's bytes; half of a surrogate pair, which JSON can smuggle in, becomes a question mark."""
    return text.encode("utf-8", "replace")


class PythonCorpus:
    """The .py files of the standard library of the interpreter that runs this, without installed packages."""

    def __init__(self, config: CorpusConfig, stdlib: Path | None = None) -> None:
        self._root = stdlib or Path(sysconfig.get_path("stdlib"))
        self._val_mb = config.val_mb
        self._texts: dict[Split, list[str]] = {}

    @property
    def source(self) -> str:
        return f"standard library of {platform.python_implementation()} {platform.python_version()}"

    def fetch(self, progress: Progress) -> None:
        found: dict[int, str] = {}
        seen = set()
        for path in self._files():
            try:
                text = path.read_bytes().decode()
            except (OSError, UnicodeDecodeError):
                continue  # the library's own tests hold files that are broken on purpose
            if text.strip() and text not in seen:
                seen.add(text)
                found[key(os.fsencode(path.relative_to(self._root).as_posix()))] = text
        if len(found) < 2:
            raise DataError(f"no Python files in {self._root}", "use corpus=files with text of your own")
        keys = sorted(found)
        sizes = [len(utf8(found[k])) for k in keys]
        num_val = _num_val(sizes, self._val_mb)
        ordered = [found[k] for k in keys]
        self._texts = {"val": ordered[:num_val], "train": ordered[num_val:]}

    def fingerprint(self) -> str:
        return sha256_text("\0".join((*self._texts["val"], *self._texts["train"])))

    def documents(self, split: Split) -> Iterator[str]:
        return iter(self._texts[split])

    def num_bytes(self, split: Split) -> int | None:
        return sum(map(len, self._texts[split]))

    def _files(self) -> Iterator[Path]:
        for folder, subfolders, names in os.walk(self._root):
            subfolders[:] = sorted(set(subfolders) - _NOT_STDLIB)
            yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


class FilesCorpus:
    """Text files of the user's; validation is either named by them or cut out by content."""

    def __init__(self, config: CorpusConfig) -> None:
        if not config.files:
            raise DataError("corpus.files names no text", "give paths or patterns: 'corpus.files=[/my/text/*.jsonl]'")
        self._text_key = config.text_key
        self._val_mb = config.val_mb
        self._val = _expand(config.val_files)
        held_out = {path.resolve() for path in self._val}
        self._all = [path for path in _expand(config.files) if path.resolve() not in held_out]
        if not self._all:
            raise DataError("corpus.files names only files of corpus.val_files", "name training text too")
        self._last_val_key = -1

    @property
    def source(self) -> str:
        return f"{len(self._all)} file{'s' * (len(self._all) != 1)}, the first {self._all[0].name!r}"

    def fetch(self, progress: Progress) -> None:
        """Choose the validation documents: those whose keys come first, up to val_mb or a tenth of all text."""
        if self._val:
            return
        keys, sizes = [], []
        with progress.stage("read", len(self._all), "files") as advance:
            for path in self._all:
                for text in texts.documents(path, self._text_key):
                    data = utf8(text)
                    keys.append(key(data))
                    sizes.append(len(data))
                advance(1)
        if len(set(keys)) < 2:
            raise DataError("corpus.files holds too few documents to cut validation from", "set corpus.val_files")
        order = np.argsort(np.array(keys, np.uint64), kind="stable")
        num_val = _num_val([sizes[i] for i in order], self._val_mb)
        self._last_val_key = keys[order[num_val - 1]]

    def fingerprint(self) -> str:
        stats = [(path, path.stat()) for path in (*self._all, *self._val)]
        return sha256_text("\0".join(f"{path!s}\0{s.st_size}\0{s.st_mtime_ns}" for path, s in stats))

    def documents(self, split: Split) -> Iterator[str]:
        if self._val:
            for path in self._val if split == "val" else self._all:
                yield from texts.documents(path, self._text_key)
            return
        for path in self._all:
            for text in texts.documents(path, self._text_key):
                if (key(utf8(text)) <= self._last_val_key) == (split == "val"):
                    yield text

    def num_bytes(self, split: Split) -> int | None:
        return None


def _num_val(sizes: Sequence[int], val_mb: float) -> int:
    """How many of the documents, in the order of their keys, are for validation: at least one, never all."""
    wanted = min(val_mb * _MB, _MAX_VAL_SHARE * sum(sizes))
    enough = int(np.searchsorted(np.cumsum(sizes), wanted)) + 1
    return min(enough, len(sizes) - 1)


def _expand(patterns: Sequence[str]) -> list[Path]:
    """The files that the patterns name, each once, in an order that mixes folders but never changes."""
    found: dict[Path, Path] = {}  # a link's own name says what the file is, its target's says which
    for pattern in patterns:
        literal = Path(pattern).expanduser()
        if literal.is_dir():
            raise DataError(f"{literal} is a folder", f"name its files: '{literal}/*.txt'")
        names = [literal] if literal.exists() else map(Path, glob.glob(str(literal), recursive=True))  # noqa: PTH207 - any pattern
        matched = {path.resolve(): path.absolute() for path in sorted(names) if path.is_file()}
        if not matched:
            raise DataError(f"no file matches {pattern!r}", "correct corpus.files or corpus.val_files")
        found |= matched
    return sorted(found.values(), key=lambda path: (key(os.fsencode(path.name)), os.fsencode(path)))
