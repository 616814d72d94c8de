"""Finding and fetching public files, against a server of our own on the loopback."""

import gzip
import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ppl_tvae.data import downloads
from ppl_tvae.data.downloads import FILE_SETS, FileSet, RemoteFile, fetch, fetch_files, md5
from ppl_tvae.errors import UserError

CONTENT = bytes(range(256)) * 200
PACKED = gzip.compress(CONTENT, mtime=0)
CHECKSUM = hashlib.md5(PACKED).hexdigest()
CONTENT_CHECKSUM = hashlib.md5(CONTENT).hexdigest()


class Server:
    """Answers every request with the next of `behaviours`, the last one again and again; counts requests."""

    def __init__(self) -> None:
        self.behaviours = ["good"]
        self.requests: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.path)
                server.answer(self)

            def log_message(self, *_: object) -> None:
                """Tests are quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        behaviour = self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]
        handler.send_response(404 if behaviour == "missing" else 200)
        body = {"good": PACKED, "cut": PACKED, "wrong": PACKED[::-1], "missing": b""}[behaviour]
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if behaviour == "cut" else body)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has an empty cache, names no folder, and reaches the loopback without a proxy."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(downloads, "cache_folder", lambda: folder)
    monkeypatch.delenv("PPL_TVAE_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


def one_file(*mirrors: str, content_md5: str | None = CONTENT_CHECKSUM) -> FileSet:
    return FileSet("letters", (RemoteFile("letters-idx1.gz", CHECKSUM, content_md5),), mirrors)


def nobody() -> str:
    """The address of a server that is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_download_once(server: Server, cache: Path) -> None:
    for _ in range(2):
        assert fetch_files(one_file(server.url)) == {"letters-idx1": cache / "letters" / "letters-idx1.gz"}
    assert (cache / "letters" / "letters-idx1.gz").read_bytes() == PACKED
    assert server.requests == ["/letters-idx1.gz"]
    assert leftovers(cache) == ["letters-idx1.gz"]


def test_a_broken_connection_is_tried_again(server: Server, cache: Path) -> None:
    server.behaviours = ["cut", "good"]
    fetch_files(one_file(server.url))
    assert len(server.requests) == 2
    assert leftovers(cache) == ["letters-idx1.gz"]


@pytest.mark.parametrize(
    ("behaviour", "words", "requests"),
    [("cut", "the connection broke", 2), ("wrong", "the wrong checksum", 2), ("missing", "status 404", 1)],
)
def test_failures_leave_nothing_and_can_be_restarted(
    server: Server, cache: Path, behaviour: str, words: str, requests: int
) -> None:
    server.behaviours = [behaviour]
    with pytest.raises(UserError, match=words):
        fetch_files(one_file(server.url))
    assert len(server.requests) == requests
    assert leftovers(cache) == []
    server.behaviours = ["good"]
    fetch_files(one_file(server.url))
    assert leftovers(cache) == ["letters-idx1.gz"]


def test_the_next_mirror_helps(server: Server) -> None:
    start = time.perf_counter()
    fetch_files(one_file(nobody(), server.url))
    assert server.requests == ["/letters-idx1.gz"]
    assert time.perf_counter() - start < 5


def test_no_network_is_one_sentence_soon(tmp_path: Path, cache: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"no answer .*check the network, or put letters-idx1.gz into") as caught:
        fetch_files(one_file(nobody(), nobody()), tmp_path / "mine")
    assert time.perf_counter() - start < 5
    assert str(cache) in str(caught.value)
    assert str(tmp_path / "mine" / "letters") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unwritable_cache(server: Server, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"expected to write letters-idx1.gz into .*"):
        fetch_files(one_file(server.url))


@pytest.mark.parametrize(
    "place", ["letters/letters-idx1.gz", "letters/letters-idx1", "letters-idx1.gz", "letters-idx1"]
)
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_files_in_a_named_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, by: str) -> None:
    path = tmp_path / "mine" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(PACKED if place.endswith(".gz") else CONTENT)
    if by == "environment":
        monkeypatch.setenv("PPL_TVAE_DATA", str(tmp_path / "mine"))
    found = fetch_files(one_file(), tmp_path / "mine" if by == "argument" else None)
    assert found == {"letters-idx1": path}


@pytest.mark.parametrize("folder", ["letters", "."])
def test_a_wrong_checksum_in_a_named_folder(tmp_path: Path, folder: str) -> None:
    path = tmp_path / "mine" / folder / "letters-idx1.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(PACKED[:-1])
    words = rf"expected md5 {CHECKSUM} of .*letters-idx1.gz, found {md5(path)}; delete the file, or unpack it as"
    with pytest.raises(UserError, match=words):
        fetch_files(one_file(), tmp_path / "mine")


def test_what_you_unpacked_is_trusted_in_its_own_folder(tmp_path: Path, server: Server) -> None:
    """Data sets share file names, so outside a folder of that name the content has to be the known one."""
    own, flat = tmp_path / "own" / "letters" / "letters-idx1", tmp_path / "flat" / "letters-idx1"
    for path in (own, flat):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"something else")
    assert fetch_files(one_file(), tmp_path / "own") == {"letters-idx1": own}
    assert fetch_files(one_file(server.url), tmp_path / "flat")["letters-idx1"] != flat


def test_another_set_with_the_same_file_names_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    """MNIST's files in the named folder are no damaged Fashion-MNIST."""
    (tmp_path / "letters-idx1.gz").write_bytes(gzip.compress(b"numbers", mtime=0))
    other = RemoteFile("letters-idx1.gz", md5(tmp_path / "letters-idx1.gz"))
    monkeypatch.setitem(FILE_SETS, "numbers", FileSet("numbers", (other,), ()))
    assert fetch_files(one_file(server.url), tmp_path)["letters-idx1"].read_bytes() == PACKED


def test_a_named_folder_without_the_files_falls_to_the_cache(tmp_path: Path, cache: Path, server: Server) -> None:
    for _ in range(2):
        found = fetch_files(one_file(server.url), tmp_path / "absent")
        assert found["letters-idx1"].is_relative_to(cache)
    assert len(server.requests) == 1
    assert not (tmp_path / "absent").exists()


def test_a_damaged_file_in_the_cache_is_fetched_again(cache: Path, server: Server) -> None:
    path = cache / "letters" / "letters-idx1.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(PACKED[:50])
    fetch_files(one_file(server.url))
    assert path.read_bytes() == PACKED


def test_an_unpacked_file_put_into_the_cache_by_hand(cache: Path) -> None:
    path = cache / "letters" / "letters-idx1"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert fetch_files(one_file()) == {"letters-idx1": path}


def test_unknown_set() -> None:
    with pytest.raises(UserError, match="did you mean 'fashion-mnist'"):
        fetch("fashion_mnist")
