"""The climbmix corpus against a hub on loopback that serves small parquet shards."""

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autoresearch_hpc.config import CorpusConfig
from autoresearch_hpc.data import climbmix, pipeline, prepare
from autoresearch_hpc.dataset import Dataset
from autoresearch_hpc.errors import DataError


class Hub(ThreadingHTTPServer):
    """What the hub's resolve endpoint does for a download: HEAD with ETag and commit, GET with Range."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.requests: list[tuple[str, str, str | None]] = []  # method, file, Range
        self.break_after: dict[str, int] = {}  # file -> bytes after which the next download breaks off
        self.dead = False  # every request is cut off

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def gets(self, name: str) -> list[str | None]:
        return [span for method, file, span in self.requests if (method, file) == ("GET", name)]

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # connections that the client or this server breaks off


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, body: bool) -> None:
        match = re.fullmatch(r"/datasets/karpathy/climbmix-400b-shuffle/resolve/main/([\w.]+)", self.path)
        name = match[1] if match else self.path
        self.server.requests.append((self.command, name, self.headers.get("Range")))
        if self.server.dead:
            self.close_connection = True
            return
        data = self.server.files.get(name)
        if data is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if span := self.headers.get("Range"):
            start = int(span.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if not body:
            return
        limit = self.server.break_after.pop(name, None)
        self.wfile.write(data[start : None if limit is None else start + limit])
        if limit is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    found = {}
    for shard in (0, 1, 2, 6542):
        texts = [f"shard {shard} document {i} " + f"words about {i * 7919 % 1000} and more " * 8 for i in range(200)]
        path = tmp_path_factory.mktemp("shards") / "x.parquet"
        pq.write_table(pa.table({"text": texts}), path, row_group_size=64)
        found[f"shard_{shard:05d}.parquet"] = path.read_bytes()
    return found


@pytest.fixture
def hub(shards: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)  # less than a chunk is not kept
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # pauses between attempts
    server = Hub(dict(shards))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _config(hub: Hub, into: Path, **settings: object) -> CorpusConfig:
    given = {"name": "climbmix", "dir": str(into), "vocab_size": 300, "seq_len": 64, "shards": 2, "endpoint": hub.url}
    return CorpusConfig(**{**given, **settings})  # type: ignore[arg-type]


def test_shards_become_a_data_set(hub: Hub, tmp_path: Path) -> None:
    config = _config(hub, tmp_path / "da ta 'ü'")
    data = Dataset(prepare(config, quiet=True))
    data.verify()
    assert data.root.name == "climbmix-v300-t64"
    assert data.manifest.source == "karpathy/climbmix-400b-shuffle, 2 shards"
    tokenizer = pipeline.bpe.load(data.root / "tokenizer.json")
    val = " ".join(tokenizer.decode(row.tolist()) for rows in data.rows("val") for row in rows)
    train = " ".join(tokenizer.decode(row.tolist()) for rows in data.rows("train") for row in rows)
    assert set(re.findall(r"shard (\d+) ", val)) == {"6542"}
    assert set(re.findall(r"shard (\d+) ", train)) == {"0", "1"}


def test_shards_are_fetched_once_for_all_data_sets(hub: Hub, tmp_path: Path) -> None:
    prepare(_config(hub, tmp_path), quiet=True)
    fetched = len(hub.requests)
    hub.dead = True
    prepare(_config(hub, tmp_path, seq_len=32), quiet=True)
    assert len(hub.requests) == fetched, "no network was needed"


def test_fetching_first_makes_preparing_need_no_network(hub: Hub, tmp_path: Path) -> None:
    config = _config(hub, tmp_path)
    pipeline.fetch(config)
    assert not config.path.exists()
    hub.dead = True
    Dataset(prepare(config, quiet=True)).verify()


def test_broken_off_download_goes_on_where_it_broke(hub: Hub, shards: dict[str, bytes], tmp_path: Path) -> None:
    hub.break_after["shard_00001.parquet"] = 1000
    prepare(_config(hub, tmp_path), quiet=True)
    assert hub.gets("shard_00001.parquet") == [None, "bytes=1000-"]
    assert (tmp_path / "climbmix-shards" / "shard_00001.parquet").read_bytes() == shards["shard_00001.parquet"]


def test_download_resumes_in_a_later_preparation(hub: Hub, shards: dict[str, bytes], tmp_path: Path) -> None:
    config = _config(hub, tmp_path)
    name = "shard_00000.parquet"
    hub.break_after[name] = 1500

    class _DiesAfterBreak(dict[str, int]):
        def pop(self, key: str, default: object = None) -> object:  # type: ignore[override]
            hub.dead = hub.dead or key in self
            return super().pop(key, default)  # type: ignore[arg-type]

    hub.break_after = _DiesAfterBreak(hub.break_after)
    with pytest.raises(DataError, match=r"cannot download shard_00000\.parquet"):
        prepare(config, quiet=True)
    assert not config.path.exists()
    hub.dead = False
    hub.requests.clear()
    prepare(config, quiet=True)
    assert len(hub.gets(name)) == 1, "from the break or from its start: that depends on the hub client's version"
    assert hub.gets("shard_06542.parquet") == [], "what was complete is kept"
    assert (tmp_path / "climbmix-shards" / name).read_bytes() == shards[name]


def test_no_network(hub: Hub, tmp_path: Path) -> None:
    config = _config(hub, tmp_path, endpoint="http://127.0.0.1:9")
    with pytest.raises(
        DataError, match=r"from http://127\.0\.0\.1:9: .*refused.*where there is internet, on a login"
    ) as caught:
        prepare(config, quiet=True)
    assert "\n" not in str(caught.value)
    assert not config.path.exists()


def test_missing_shard_is_not_asked_for_again_and_again(hub: Hub, tmp_path: Path) -> None:
    del hub.files["shard_00001.parquet"]
    with pytest.raises(DataError, match=r"cannot download shard_00001\.parquet of karpathy/climbmix-400b-shuffle"):
        prepare(_config(hub, tmp_path), quiet=True)
    assert len([1 for _, name, _ in hub.requests if name == "shard_00001.parquet"]) == 1


def test_damaged_shard_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.files["shard_00001.parquet"] = hub.files["shard_00001.parquet"][:-40] + b"x" * 40
    with pytest.raises(DataError, match=r"shard_00001\.parquet is not readable parquet: .*; delete it and fetch"):
        prepare(_config(hub, tmp_path), quiet=True)


@pytest.mark.parametrize("shards", [0, climbmix._VAL_SHARD + 1])
def test_number_of_shards_never_reaches_validation(tmp_path: Path, shards: int) -> None:
    with pytest.raises(DataError, match=f"corpus.shards={shards}; give 1 to 6542"):
        prepare(CorpusConfig(name="climbmix", dir=str(tmp_path), shards=shards))
