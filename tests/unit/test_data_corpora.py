"""Documents from files of every format, and which of them are held out for validation."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autoresearch_hpc.config import CorpusConfig
from autoresearch_hpc.data import texts
from autoresearch_hpc.data.corpora import FilesCorpus, PythonCorpus
from autoresearch_hpc.data.progress import Progress
from autoresearch_hpc.errors import DataError

QUIET = Progress(quiet=True)


def _read(path: Path, key: str = "text") -> list[str]:
    return list(texts.documents(path, key))


def test_text_is_one_document_with_its_bytes_kept(tmp_path: Path) -> None:
    path = tmp_path / "a 'b' ü [1].txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo \xc3\xbc\n\n")
    assert _read(path) == ["one\r\ntwo ü\n\n"]


def test_long_text_is_cut_at_line_ends(tmp_path: Path) -> None:
    text = "".join(f"line {i} ü\n" for i in range(20000))
    path = tmp_path / "long.md"
    path.write_text(text, encoding="utf-8")
    found = _read(path)
    assert "".join(found) == text
    assert len(found) > 2
    assert all(document.endswith("\n") and len(document) < texts.TEXT_BLOCK + 100 for document in found)


def test_json_lines_plain_and_packed(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": t, "n": 1}) + "\n" for t in ("a\nb", "ü", "")) + '\n{"text": null}\n'
    (tmp_path / "x.jsonl").write_text(lines, encoding="utf-8")
    with gzip.open(tmp_path / "x.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(lines)
    assert _read(tmp_path / "x.jsonl") == _read(tmp_path / "x.jsonl.gz") == ["a\nb", "ü", ""]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"n": [1, 2, 3], "body": ["a", None, "ü"]}), path)
    assert _read(path, "body") == ["a", "ü"]
    assert texts.num_text_bytes(path, "body")
    assert texts.num_text_bytes(path, "other") is None


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"txt": 1}\n', r"x\.jsonl:2 has no 'text' but 'txt'; set corpus\.text_key"),
        ("x.jsonl", b'{"text": "a"}\n{"te', r"x\.jsonl:2 is not JSON"),
        ("x.jsonl", b'["text"]\n', r"x\.jsonl:1 has no 'text' but nothing"),
        ("x.jsonl", b'{"text": 5}\n', r"x\.jsonl:1: 'text' is int, not text"),
        ("x.jsonl.gz", b"not packed", r"cannot read .*x\.jsonl\.gz"),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 999, mtime=0)[:-9], r"cannot read .*x\.jsonl\.gz"),
        ("x.txt", b"caf\xe9", r"x\.txt is not text in UTF-8"),
        ("x.parquet", b"PAR1 no", r"x\.parquet is not readable parquet"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = _write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        _read(path)
    assert "\n" not in str(caught.value)


def test_parquet_without_the_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"no 'text' but 'body', 'n'"):
        _read(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"'n' is int, not text"):
        _read(tmp_path / "x.parquet", "n")


def _files(tmp_path: Path, **settings: object) -> FilesCorpus:
    corpus = FilesCorpus(CorpusConfig(name="files", dir=str(tmp_path / "data"), **settings))  # type: ignore[arg-type]
    corpus.fetch(QUIET)
    return corpus


def test_validation_is_cut_by_content(tmp_path: Path) -> None:
    documents = [f"document {i} " * (i + 1) for i in range(100)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in documents))
    corpus = _files(tmp_path, files=[str(tmp_path / "*.jsonl")])
    val, train = list(corpus.documents("val")), list(corpus.documents("train"))
    assert sorted(val + train) == sorted(documents)
    assert 1 <= len(val) < 30
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in reversed(documents)))
    assert set(_files(tmp_path, files=[str(tmp_path / "x.jsonl")]).documents("val")) == set(val), "not by order"


def test_val_mb_bounds_the_cut(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": f"{i:05d}" * 20}) + "\n" for i in range(2000)))
    val = list(_files(tmp_path, files=[str(tmp_path / "x.jsonl")], val_mb=0.005).documents("val"))
    assert 50 <= len(val) <= 52


def test_named_validation_files_never_train(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "held [out].txt"):
        (tmp_path / name).write_text(name)
    corpus = _files(tmp_path, files=[str(tmp_path / "*.txt")], val_files=[str(tmp_path / "held [out].txt")])
    assert list(corpus.documents("val")) == ["held [out].txt"]
    assert sorted(corpus.documents("train")) == ["a.txt", "b.txt"]


def test_links_are_what_their_names_say_and_counted_once(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"blob{i}").write_text(json.dumps({"text": f"text {i}"}) + "\n")
        (tmp_path / f"x{i}.jsonl").symlink_to(tmp_path / f"blob{i}")
    (tmp_path / "y.jsonl").symlink_to(tmp_path / "blob0")
    links = [str(tmp_path / "*.jsonl")]
    corpus = _files(tmp_path, files=links)
    assert sorted((*corpus.documents("val"), *corpus.documents("train"))) == ["text 0", "text 1", "text 2"]
    corpus = _files(tmp_path, files=links, val_files=[str(tmp_path / "y.jsonl")])
    assert sorted(corpus.documents("train")) == ["text 1", "text 2"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "names no text"),
        ({"files": ["nothing/*.txt"]}, r"no file matches 'nothing/\*\.txt'"),
        ({"files": ["only.txt"], "val_files": ["only.txt"]}, "only files of corpus.val_files"),
        ({"files": ["only.txt"], "val_files": ["gone.txt"]}, "no file matches 'gone.txt'"),
        ({"files": ["only.txt"]}, "too few documents"),
        ({"files": ["empty.txt"]}, "too few documents"),
        ({"files": ["folder"]}, r"folder is a folder; name its files: 'folder/\*\.txt'"),
    ],
)
def test_impossible_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "only.txt").write_text("text")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=message):
        _files(tmp_path, **settings)


@pytest.fixture
def stdlib(tmp_path: Path) -> Path:
    root = tmp_path / "std lib 'ü'"
    for i in range(60):
        folder = root / ("pkg" if i % 2 else ".")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"m{i}.py").write_text(f"# module {i}\n" * 30)
    (root / "copy.py").write_text("# module 7\n" * 30)
    (root / "broken.py").write_bytes(b"# \xff\n")
    (root / "empty.py").touch()
    (root / "readme.txt").write_text("no Python")
    for hidden in ("site-packages", "dist-packages", "__pycache__"):
        (root / hidden).mkdir()
        (root / hidden / "other.py").write_text("# installed\n")
    return root


def _python(stdlib: Path, **settings: object) -> PythonCorpus:
    corpus = PythonCorpus(CorpusConfig(**settings), stdlib)  # type: ignore[arg-type]
    corpus.fetch(QUIET)
    return corpus


def test_python_takes_each_library_file_once(stdlib: Path) -> None:
    corpus = _python(stdlib)
    val, train = list(corpus.documents("val")), list(corpus.documents("train"))
    assert sorted(val + train) == sorted(f"# module {i}\n" * 30 for i in range(60))
    assert 4 <= len(val) <= 8
    assert not set(val) & set(train)


def test_python_split_follows_the_path_not_the_content(stdlib: Path) -> None:
    held_out = next(_python(stdlib).documents("val"))
    number = int(held_out.split()[2])
    path = next(stdlib.rglob(f"m{number}.py"))
    path.write_text("changed = True\n" * 30)
    assert "changed = True\n" * 30 in list(_python(stdlib).documents("val"))


def test_python_fingerprint_knows_the_text(stdlib: Path) -> None:
    before = _python(stdlib).fingerprint()
    assert _python(stdlib).fingerprint() == before
    (stdlib / "m0.py").write_text("other\n")
    assert _python(stdlib).fingerprint() != before


def test_python_without_a_library(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no Python files in .*corpus=files"):
        _python(tmp_path)
