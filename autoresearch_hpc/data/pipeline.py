"""The stages of a preparation, in order, each skipped where an interrupted one has finished it.

    data/NAME.lock      who prepares it right now
    data/NAME.partial/  recipe.json, tokenizer.json, val/ and train/ (encoded parts), out/ (the finished files)
    data/NAME/          out/, renamed as the very last act

NAME says corpus, vocabulary and sequence length; the other settings are in the data set's recipe.json, and a request
that differs from it is refused rather than served with other data.
"""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np

from autoresearch_hpc.config import CorpusConfig
from autoresearch_hpc.data import bpe, corpora
from autoresearch_hpc.data.claim import Claim
from autoresearch_hpc.data.climbmix import ClimbmixCorpus
from autoresearch_hpc.data.encode import encode_parts, read_part
from autoresearch_hpc.data.pack import Tokens, pack, write_rows
from autoresearch_hpc.data.progress import Progress
from autoresearch_hpc.dataset import MANIFEST, TOKEN_BYTES, TOKENIZER, DataFile, Dataset, Manifest, Split
from autoresearch_hpc.errors import ConfigError, DataError
from autoresearch_hpc.files import read_json, sha256_file, sha256_text, sync_directory, write_json_atomic

_log = logging.getLogger(__name__)
_SETTINGS = {  # what decides a corpus's data, beyond its name
    "python": ("tokenizer_mb", "max_train_mb", "val_mb"),
    "climbmix": ("tokenizer_mb", "max_train_mb", "shards"),
    "files": ("tokenizer_mb", "max_train_mb", "val_mb", "files", "val_files", "text_key"),
}
_RECIPE = "recipe.json"


def prepare(config: CorpusConfig, quiet: bool = False) -> Path:
    """The directory of the data set that config describes, complete; at once where it is there.

    Where another process prepares the same data set this waits for it. Raises DataError where the text cannot be had
    or is too little, or where a data set of other settings or a damaged one is in the way; what was done is kept.
    """
    root, work = config.path, config.path.with_name(f"{config.path.name}.partial")
    lock = root.with_name(f"{root.name}.lock")
    if _exists(root, config):
        if work.exists():  # the last one was killed between publishing and cleaning up
            with contextlib.suppress(OSError), Claim(lock):
                shutil.rmtree(work)
        return root
    corpus = _corpus(config)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with Claim(lock):
            if not _exists(root, config):
                _build(root, work, corpus, config, Progress(quiet))
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"cannot prepare {root}: {error}", "correct it and start again; what was done is kept"
        ) from error
    return root


def fetch(config: CorpusConfig) -> None:
    """Only what needs a network: afterwards `prepare` works without one."""
    _corpus(config).fetch(Progress())


def verify(config: CorpusConfig) -> Dataset:
    """The data set that config describes, every file hashed. Raises DataError naming what is missing or damaged."""
    data = _open(config.path, config)
    data.verify()
    return data


def _corpus(config: CorpusConfig) -> corpora.Corpus:
    for name in ("tokenizer_mb", "val_mb", "max_train_mb"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ConfigError(f"corpus.{name}={value}", "give megabytes above 0")
    match config.name:
        case "python":
            return corpora.PythonCorpus(config)
        case "climbmix":
            return ClimbmixCorpus(config)
        case "files":
            return corpora.FilesCorpus(config)
    raise ConfigError(f"no corpus named {config.name!r}", f"there are: {', '.join(_SETTINGS)}")


def _exists(root: Path, config: CorpusConfig) -> bool:
    if not root.is_dir() or not any(root.iterdir()):
        return False
    _open(root, config)
    try:
        recipe = read_json(root / _RECIPE)
    except (OSError, ValueError):
        return True  # made by hand or by other means: the manifest decides
    if config.name == "files" and not config.files:
        return True  # nothing else was asked for
    wanted = _settings(config)
    other = [f"{key}={recipe.get(key)}, not {value}" for key, value in wanted.items() if recipe.get(key) != value]
    if other:
        raise DataError(
            f"{root} was prepared with {'; '.join(other)}",
            "ask for the same, set another corpus.dir, or delete the folder",
        )
    return True


def _open(root: Path, config: CorpusConfig) -> Dataset:
    data = Dataset(root)
    m = data.manifest
    if (m.corpus, m.vocab_size, m.seq_len) != (config.name, config.vocab_size, config.seq_len):
        raise DataError(
            f"{root} holds {m.corpus} with vocabulary {m.vocab_size} and {m.seq_len} tokens a row",
            "its name says otherwise: rename or delete the folder",
        )
    return data


def _settings(config: CorpusConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in _SETTINGS[config.name]}


def _build(root: Path, work: Path, corpus: corpora.Corpus, config: CorpusConfig, progress: Progress) -> None:
    started = time.monotonic()
    _log.info("preparing %s from %s", root, corpus.source)
    corpus.fetch(progress)
    _open_work(work, corpus, config)
    held_out = {corpora.key(corpora.utf8(text)) for text in corpus.documents("val")}

    tokenizer_path = work / TOKENIZER
    if not tokenizer_path.is_file():
        with progress.stage("tokenizer", _expected_mb(corpus, "train", config.tokenizer_mb), "MB") as advance:
            texts = _texts(corpus, "train", config, held_out)
            sample = _counted(_limited(texts, config.tokenizer_mb), advance)
            bpe.save(bpe.train(sample, config.vocab_size), tokenizer_path)
    tokenizer = bpe.load(tokenizer_path)

    parts: dict[Split, list[Path]] = {}
    splits: tuple[Split, ...] = ("val", "train")
    for split in splits:
        with progress.stage(f"encode {split}", _expected_mb(corpus, split, config.max_train_mb), "MB") as advance:
            texts = _texts(corpus, split, config, held_out)
            parts[split] = encode_parts(tokenizer, texts, work / split, advance)

    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    rows: dict[Split, tuple[DataFile, ...]] = {}
    for split in splits:
        with progress.stage(f"pack {split}", len(parts[split]), "parts") as advance:
            order = np.random.RandomState(1).permutation(len(parts[split]))
            tokens = chain.from_iterable(_announced(parts[split][i], advance) for i in order)
            width = config.seq_len + 1
            rows[split] = write_rows(pack(tokens, width, bpe.BOS_ID), out, split, width)
        if not rows[split]:
            shutil.rmtree(work)
            what = "validation" if split == "val" else "training"
            raise DataError(
                f"too little {what} text for one row of {width} tokens", "add text, or lower corpus.seq_len"
            )

    shutil.copyfile(tokenizer_path, out / TOKENIZER)
    (out / TOKEN_BYTES).write_bytes(bpe.token_bytes(tokenizer, config.vocab_size).tobytes())
    manifest = Manifest(
        corpus=config.name,
        vocab_size=config.vocab_size,
        seq_len=config.seq_len,
        bos_id=bpe.BOS_ID,
        tokenizer=_described(out / TOKENIZER),
        token_bytes=_described(out / TOKEN_BYTES),
        train=rows["train"],
        val=rows["val"],
        source=corpus.source,
    )
    write_json_atomic(out / _RECIPE, _settings(config))
    write_json_atomic(out / MANIFEST, {**asdict(manifest), "sha256": manifest.sha256})
    try:
        out.rename(root)
    except OSError:
        if not _exists(root, config):  # another was faster, see `claim`
            raise
    sync_directory(root.parent)
    _log.info(
        "prepared %s: %d training rows, %d validation rows of %d tokens in %.1f s",
        root,
        manifest.rows("train"),
        manifest.rows("val"),
        width,
        time.monotonic() - started,
    )


def _open_work(work: Path, corpus: corpora.Corpus, config: CorpusConfig) -> None:
    """An empty work directory, or one that was begun with the same text, settings and tokenizer library."""
    import tokenizers

    recipe = {**_settings(config), "text": sha256_text(corpus.fingerprint()), "tokenizers": tokenizers.__version__}
    try:
        same = read_json(work / _RECIPE) == recipe
    except (OSError, ValueError):
        same = False
    if same:
        _log.info("resuming from %s", work)
        return
    if work.exists():
        shutil.rmtree(work)
    work.mkdir()
    write_json_atomic(work / _RECIPE, recipe)


def _texts(corpus: corpora.Corpus, split: Split, config: CorpusConfig, held_out: set[int]) -> Iterator[tuple[str, int]]:
    """A split's documents with their bytes: none empty, and no training document that validation has too."""
    if split == "train" and config.max_train_mb is not None:
        yield from _limited(_clean(corpus, split, held_out), config.max_train_mb)
    else:
        yield from _clean(corpus, split, held_out)


def _clean(corpus: corpora.Corpus, split: Split, held_out: set[int]) -> Iterator[tuple[str, int]]:
    for text in corpus.documents(split):
        data = corpora.utf8(text)
        if not data or (split == "train" and corpora.key(data) in held_out):
            continue
        yield text if text.isascii() else data.decode(), len(data)


def _limited(texts: Iterator[tuple[str, int]], limit_mb: float) -> Iterator[tuple[str, int]]:
    left = limit_mb * 1e6
    for text, size in texts:
        yield text, size
        left -= size
        if left <= 0:
            return


def _counted(texts: Iterator[tuple[str, int]], advance: Callable[[float], None]) -> Iterator[str]:
    for text, size in texts:
        yield text
        advance(size / 1e6)


def _announced(part: Path, advance: Callable[[float], None]) -> Iterator[Tokens]:
    yield from read_part(part)
    advance(1)


def _expected_mb(corpus: corpora.Corpus, split: Split, limit_mb: float | None) -> float | None:
    size = corpus.num_bytes(split)
    if size is None:
        return limit_mb if split == "train" else None
    return size / 1e6 if limit_mb is None or split == "val" else min(size / 1e6, limit_mb)


def _described(path: Path) -> DataFile:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return DataFile(name=path.name, size=path.stat().st_size, sha256=sha256_file(path))
