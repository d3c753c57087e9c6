"""Documents out of files: plain text, JSON lines and parquet, each also streamed so that memory stays bounded.

What a file is, its name says: `.jsonl` and `.parquet` are what they are called, anything else is text in UTF-8; a
further `.gz` is unpacked while reading (not for parquet). Raises DataError naming the file, and the line where there
is one.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from autoresearch_hpc.errors import DataError

TEXT_BLOCK = 1 << 16  # characters; a longer text file counts as several documents, cut at line ends


def documents(path: Path, text_key: str) -> Iterator[str]:
    """The documents of one file, in order."""
    name = path.name.lower().removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            yield from _parquet(path, text_key)
        elif name.endswith((".jsonl", ".ndjson")):
            yield from _json_lines(path, text_key)
        else:
            yield from _text(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8: {error.reason}", "convert it, or leave it out") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}", "correct it, or leave it out") from error


def num_text_bytes(path: Path, text_key: str) -> int | None:
    """Roughly how many bytes of text a parquet file holds, from its metadata; None where nothing tells."""
    import pyarrow.parquet as pq

    try:
        meta = pq.read_metadata(path)
    except (OSError, ValueError):
        return None
    columns = [meta.row_group(g).column(c) for g in range(meta.num_row_groups) for c in range(meta.num_columns)]
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema == text_key) or None


def _open(path: Path, encoding: str, newline: str | None) -> IO[str]:
    if path.name.lower().endswith(".gz"):
        return io.TextIOWrapper(cast("IO[bytes]", gzip.open(path)), encoding=encoding, newline=newline)
    return path.open(encoding=encoding, newline=newline)


def _text(path: Path) -> Iterator[str]:
    with _open(path, "utf-8-sig", "") as file:
        while block := file.read(TEXT_BLOCK):
            if len(block) == TEXT_BLOCK:
                block += file.readline(TEXT_BLOCK)
            yield block


def _json_lines(path: Path, text_key: str) -> Iterator[str]:
    with _open(path, "utf-8", "\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number} is not JSON: {error}", "correct the line, or leave it out") from error
            if not isinstance(row, dict) or text_key not in row:
                raise _no_key(f"{path}:{number}", text_key, row if isinstance(row, dict) else ())
            yield from _checked(row[text_key], f"{path}:{number}", text_key)


def _parquet(path: Path, text_key: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if text_key not in file.schema_arrow.names:
                raise _no_key(str(path), text_key, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=1024, columns=[text_key]):
                for value in batch.column(0).to_pylist():
                    yield from _checked(value, str(path), text_key)
    except pa.ArrowException as error:
        what = str(error).splitlines()[0]
        raise DataError(f"{path} is not readable parquet: {what}", "delete it and fetch it again") from error


def _checked(value: object, where: str, text_key: str) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif value is not None:
        raise DataError(f"{where}: {text_key!r} is {type(value).__name__}, not text", "set corpus.text_key=NAME")


def _no_key(where: str, text_key: str, present: object) -> DataError:
    names = ", ".join(repr(str(name)) for name in list(present)[:8]) if present else "nothing"  # type: ignore[call-overload]
    return DataError(f"{where} has no {text_key!r} but {names}", "set corpus.text_key=NAME")
