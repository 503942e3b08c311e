"""URLs are downloaded once, resumed after a broken connection, and checked by their sha256."""

import gzip
import hashlib
import io
import itertools
import json
import re
import time
from collections.abc import Callable, Iterable
from email.message import Message
from pathlib import Path
from urllib.request import Request

import pytest
from web_server import Server, raw_server, running_server

from mtrain.data import connections, downloads
from mtrain.data.downloads import base_name, cache_dir, fetch
from mtrain.data.lock import Lock
from mtrain.errors import DataError, DownloadError, UsageError

CONTENT = b"".join(b"line %d\n" % i for i in range(20_000))
LAST = len(CONTENT) - 1  # the position of its last byte
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WRONG = "0" * 64


@pytest.fixture
def server():
    with running_server() as running:
        running.files = {"/a/corpus.txt": CONTENT}
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MTRAIN_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(downloads, "WAIT_S", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def lock(tmp_path):
    return Lock.open(tmp_path / "my.yaml")


def test_a_file_is_fetched_once(server, lock, cache):
    url = server.url("/a/corpus.txt")
    path = fetch(url, None, lock)
    assert path.read_bytes() == CONTENT
    assert fetch(url, SHA256, lock) == path
    assert server.ranges == [None]
    assert lock.files[url] == {"sha256": SHA256, "size_bytes": len(CONTENT)}
    assert [file.name for file in cache.iterdir()] == [path.name]  # nothing half-done stays
    path.write_bytes(b"damaged")
    assert fetch(url, None, lock).read_bytes() == CONTENT


def test_a_url_with_spaces_and_other_scripts_and_a_base_name_that_is_there(server, lock):
    server.files = {"/%C3%BC%20b.txt": b"a\n", "/de/%C3%BC%20b.txt": b"b\n"}
    assert fetch(server.url("/ü b.txt"), None, lock).read_bytes() == b"a\n"
    assert fetch(server.url("/de/ü b.txt"), None, lock).read_bytes() == b"b\n"


@pytest.mark.parametrize("etag", ['"v1"', None])
def test_a_broken_download_is_resumed(server, lock, etag):
    server.etag = etag
    server.cut_after = 100_000
    assert fetch(server.url("/a/corpus.txt"), None, lock).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=200000-"]


def test_a_server_that_ignores_range_sends_all_again(server, lock):
    server.cut_after, server.knows_range = 100_000, False
    url = server.url("/a/corpus.txt")
    with pytest.raises(DownloadError, match=r"100,000 bytes received\): the connection was closed"):
        fetch(url, None, lock)
    assert server.ranges == [None] + ["bytes=100000-"] * (downloads.ATTEMPTS - 1)
    server.cut_after = None
    assert fetch(url, None, lock).read_bytes() == CONTENT


def test_a_part_of_another_version_is_not_resumed(server, lock):
    _leave_a_part(server, lock, n_bytes=60_000)
    server.files["/a/corpus.txt"] = CONTENT.upper()
    server.etag = '"v2"'
    assert fetch(server.url("/a/corpus.txt"), None, lock).read_bytes() == CONTENT.upper()


def test_a_part_of_unknown_version_is_used_only_under_a_sha256(server, lock, cache):
    _leave_a_part(server, lock, n_bytes=60_000)
    (part,) = cache.glob("*.part")
    part.write_bytes(b"x" * 60_000)
    part.with_name(part.name + ".version").unlink()
    url = server.url("/a/corpus.txt")
    assert fetch(url, SHA256, lock).read_bytes() == CONTENT
    assert server.ranges == ["bytes=60000-", None]  # resumed, found wrong, fetched whole


def test_a_part_that_is_already_whole(server, lock, cache):
    _leave_a_part(server, lock, n_bytes=60_000)
    next(cache.glob("*.part")).write_bytes(CONTENT)
    assert fetch(server.url("/a/corpus.txt"), None, lock).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]  # answered 416


def test_a_busy_server_is_asked_again(server, lock):
    server.n_busy = 2
    assert fetch(server.url("/a/corpus.txt"), None, lock).read_bytes() == CONTENT
    server.n_busy = downloads.ATTEMPTS
    server.files["/b"] = b"b\n"
    with pytest.raises(DownloadError, match="answered 503"):
        fetch(server.url("/b"), None, lock)


def test_a_wrong_sha256_names_both(server, lock):
    url = server.url("/a/corpus.txt")
    with pytest.raises(DownloadError) as error:
        fetch(url, WRONG, lock)
    assert error.value.message == f"{url} has the wrong sha256: expected {WRONG}, got {SHA256}"
    assert error.value.exit_code == 3
    assert lock.files == {}
    assert fetch(url, SHA256, lock).read_bytes() == CONTENT  # the wrong bytes are not kept


def test_a_file_that_changed_since_the_lock(server, lock, tmp_path):
    url = server.url("/a/corpus.txt")
    lock.record(url, WRONG, 1)
    with pytest.raises(DownloadError, match=f"has changed: .*my.lock recorded sha256 {WRONG}"):
        fetch(url, None, lock)
    assert lock.expect(url) == WRONG


def test_a_redirect_is_followed(server, lock):
    server.redirects = {"/latest.txt": "/moved.txt", "/moved.txt": "/a/corpus.txt"}
    path = fetch(server.url("/latest.txt"), None, lock)
    assert path.read_bytes() == CONTENT
    assert lock.expect(server.url("/latest.txt")) == SHA256


TO_ITSELF = {"/a/corpus.txt": "/y.txt", "/y.txt": "/a/corpus.txt"}
NOWHERE = ("http://[::1", "http://a..b/", "http://" + "a" * 70, "http:///x")


@pytest.mark.parametrize(
    ("told", "message", "most_requests"),
    [
        ({"files": {}}, "/a/corpus.txt answered 404", 1),
        ({"status": 204}, "204", 1),
        ({"redirects": TO_ITSELF}, r"/a/corpus\.txt is redirected in a circle", 10),
        ({"redirects": {"/a/corpus.txt": "ftp://127.0.0.1:9/x"}}, "in a circle, or nowhere", 1),
        *(({"redirects": {"/a/corpus.txt": url}}, r"/a/corpus\.txt", 4) for url in NOWHERE),
        ({"said_length": LAST + 2, "knows_range": False}, "the connection was closed early", 4),
        ({"cut_after": 1}, "could not be downloaded", downloads.ATTEMPTS),
        ({"cut_after": 100_000, "refuses_range": True}, "could not be downloaded", 8),
    ],
)
def test_a_server_that_answers_something_else(server, lock, told, message, most_requests):
    vars(server).update(told)
    with pytest.raises(DownloadError, match=message):
        fetch(server.url("/a/corpus.txt"), None, lock)
    assert len(server.ranges) <= most_requests


def test_a_length_that_is_too_small(server, lock):
    """The rest cannot be seen; a sha256, or the end of compressed data, tells."""
    server.said_length = len(CONTENT) - 5
    with pytest.raises(DownloadError, match=r"corpus\.txt has the wrong sha256"):
        fetch(server.url("/a/corpus.txt"), SHA256, lock)


@pytest.mark.parametrize("length", ["many", "-5", "1e6", "²"])
def test_a_length_that_is_no_number(server, lock, length):
    server.length_header = length.encode().decode("latin-1")
    server.files["/a/corpus.txt"] = b"text\n"
    assert fetch(server.url("/a/corpus.txt"), None, lock).read_bytes() == b"text\n"


@pytest.mark.parametrize(
    ("url", "message"),
    [("http://127.0.0.1:9/x", "refused"), ("http://127.0.0.1:port/x", "is not a valid URL")],
)
def test_a_url_without_a_server(lock, url, message):
    with pytest.raises(DownloadError, match=message) as error:
        fetch(url, None, lock)
    assert ("MTRAIN_MIRROR" in str(error.value)) is (message == "refused")


# -- HTML ------------------------------------------------------------------------------------

PAGES = [
    b"<html><body>Log in</body></html>",
    b"\n<!DOCTYPE html><html>Sign in</html>",
    b"\xef\xbb\xbf \n<!DOCTYPE HTML>",
    b"<!-- " + b"x" * 5000 + b" -->\n<!-- again --><HTML>",
    b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0">',
    b"\n<head><title>404</title>",
    b"<title>Log in</title><p>please\n",
    b'<SCRIPT>location="/login"</SCRIPT>\n',
    b"<!--" + b"x" * 100_000 + b"--><html>",
    b'<meta charset="utf-8"><p>\n',
]


@pytest.mark.parametrize("page", [*PAGES, gzip.compress(PAGES[0], mtime=0)])
def test_a_page_is_no_data(server, lock, page):
    server.redirects = {"/corpus.tgz": "/login"}
    server.files["/login"] = page
    with pytest.raises(DownloadError, match=r"/corpus\.tgz is an HTML page"):
        fetch(server.url("/corpus.tgz"), None, lock)
    with pytest.raises(DownloadError, match=r"wrong sha256.*\(an HTML page\)"):
        fetch(server.url("/corpus.tgz"), WRONG, lock)


def test_nothing_is_no_data(server, lock):
    server.files["/a/corpus.txt"] = b""
    with pytest.raises(DownloadError, match="is empty"):
        fetch(server.url("/a/corpus.txt"), None, lock)


@pytest.mark.parametrize(
    "data",
    [
        *(b"<?xml version='1.0'?>\n<tmx>", b"<!-- a\n", b"<seg>x</seg>", b"<titles>\n", b"<P>\n"),
        *(b"<headline>x</headline>\n", b"\x1f\x8bdamaged"),
        gzip.compress(CONTENT, mtime=0),
        gzip.compress(CONTENT, mtime=0)[:100],
    ],
)
def test_data_that_resembles_a_page(server, lock, data):
    server.files["/a/corpus.txt"] = data
    assert fetch(server.url("/a/corpus.txt"), None, lock).read_bytes() == data


@pytest.mark.parametrize("kind", ["text/html", "Text/HTML; charset=utf-8", "application/xhtml+xml"])
def test_pages_by_their_type(lock, kind):
    """Refused before they are read, unless the sha256 says that they are the right file."""

    def answer(request: str) -> Iterable[bytes]:
        return [_answer("200 OK", b"Please log in\n", Content_Type=kind)]

    with raw_server(answer) as server:
        with pytest.raises(DownloadError, match="is an HTML page"):
            fetch(f"{server.address}/x", None, lock)
        sha256 = hashlib.sha256(b"Please log in\n").hexdigest()
        assert fetch(f"{server.address}/x", sha256, lock).is_file()


def test_a_page_in_between_leaves_the_part(server, lock, cache):
    _leave_a_part(server, lock, n_bytes=60_000)
    server.content_type = "text/html"
    with pytest.raises(DownloadError, match="is an HTML page"):
        fetch(server.url("/a/corpus.txt"), None, lock)
    assert next(cache.glob("*.part")).stat().st_size == 60_000


class TestMirror:
    """`MTRAIN_MIRROR` takes the place of the network."""

    @pytest.fixture(autouse=True)
    def mirror(self, tmp_path, monkeypatch):
        for folder, content in {"a": b"other", "deep/b": CONTENT}.items():
            (tmp_path / "mirror" / folder).mkdir(parents=True)
            (tmp_path / "mirror" / folder / "corpus.txt").write_bytes(content)
        monkeypatch.setenv("MTRAIN_MIRROR", str(tmp_path / "mirror"))

    def test_the_namesake_with_the_right_bytes_is_used(self, lock, tmp_path):
        path = fetch("https://nowhere.invalid/x/corpus.txt", SHA256, lock)
        assert path == tmp_path / "mirror/deep/b/corpus.txt"
        assert lock.expect("https://nowhere.invalid/x/corpus.txt") == SHA256

    def test_the_recorded_sha256_serves_too(self, lock, tmp_path):
        lock.record("https://nowhere.invalid/corpus.txt", SHA256, len(CONTENT))
        path = fetch("https://nowhere.invalid/corpus.txt", None, lock)
        assert path == tmp_path / "mirror/deep/b/corpus.txt"

    def test_other_bytes_are_not_used(self, server, lock, capsys):
        server.files["/corpus.txt"] = b"third\n"
        sha256 = hashlib.sha256(b"third\n").hexdigest()
        path = fetch(server.url("/corpus.txt"), sha256, lock)
        assert path.read_bytes() == b"third\n"
        assert "not used" in capsys.readouterr().err

    def test_nothing_is_taken_on_trust(self, server, lock):
        server.files["/corpus.txt"] = b"third\n"
        assert fetch(server.url("/corpus.txt"), None, lock).read_bytes() == b"third\n"

    def test_it_must_be_a_directory(self, lock, monkeypatch):
        monkeypatch.setenv("MTRAIN_MIRROR", "/nowhere")
        with pytest.raises(DataError, match="/nowhere, which is not a directory"):
            fetch("https://nowhere.invalid/corpus.txt", SHA256, lock)


class TestLock:
    """`<config stem>.lock`"""

    def test_it_is_readable_and_sorted(self, tmp_path):
        lock = Lock.open(tmp_path / "my.yaml")
        lock.record("https://z/x", SHA256, 3)
        lock.record_lines("https://z/x", 1)
        lock.record("a.txt", WRONG, 2)
        lock.describe("opus:x/v1 en-de", licence="CC0", revision=None)
        lock.describe("opus:x/v1 en-de", pairs=1)
        assert lock.save(tmp_path / "data") == tmp_path / "my.lock"
        content = json.loads((tmp_path / "my.lock").read_text())
        assert content == {
            "format": 1,
            "files": {
                "a.txt": {"sha256": WRONG, "size_bytes": 2},
                "https://z/x": {"sha256": SHA256, "size_bytes": 3, "lines": 1},
            },
            "sources": {"opus:x/v1 en-de": {"licence": "CC0", "pairs": 1}},
        }
        assert list(content["files"]) == ["a.txt", "https://z/x"]
        assert Lock.open(tmp_path / "my.yaml").expect("https://z/x") == SHA256

    def test_lines_belong_to_bytes(self, lock):
        lock.record("a.txt", SHA256, 3)
        lock.record_lines("a.txt", 7)
        lock.record("a.txt", SHA256, 3)
        assert lock.files["a.txt"]["lines"] == 7
        lock.record("a.txt", WRONG, 3)
        assert "lines" not in lock.files["a.txt"]

    def test_it_is_not_rewritten_without_need(self, lock, tmp_path):
        lock.save(tmp_path)
        assert not lock.path.exists()

    def test_an_unwritable_directory(self, tmp_path, capsys):
        # A file where a directory should be stops everybody, root too.
        (tmp_path / "file").write_text("")
        config, data = tmp_path / "file/configs/my.yaml", tmp_path / "data"
        lock = Lock.open(config, data)
        lock.record("https://z/x", SHA256, 3)
        assert lock.save(data) == data / "my.lock"
        assert "cannot be written; the lock is" in capsys.readouterr().err
        assert Lock.open(config, data).expect("https://z/x") == SHA256

    @pytest.mark.parametrize("text", ["", "[]", '{"format": 2, "files": {}}', '{"files": 1}'])
    def test_a_damaged_lock_is_an_error(self, tmp_path, text):
        (tmp_path / "my.lock").write_text(text)
        with pytest.raises(DataError, match=r"cannot read .*my\.lock: "):
            Lock.open(tmp_path / "my.yaml")


def test_the_base_name_of_a_url():
    assert base_name("https://host/a/b%20c.gz?raw=true#x") == "b c.gz"


def test_the_cache_is_the_users(monkeypatch):
    monkeypatch.delenv("MTRAIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_dir() == Path("/cache/mtrain")


# -- they end --------------------------------------------------------------------------------


def test_a_byte_now_and_then_is_no_progress(server, lock, monkeypatch):
    monkeypatch.setenv("MTRAIN_DOWNLOAD_STALL", "0.2")
    server.pause_s = 0.01
    with pytest.raises(DownloadError, match=r"sends less than 65,536 bytes in 0\.2 seconds"):
        fetch(server.url("/a/corpus.txt"), None, lock)


def test_a_body_without_end(server, lock, monkeypatch, cache):
    monkeypatch.setenv("MTRAIN_DOWNLOAD_GIB", "0.001")
    server.is_endless = True
    with pytest.raises(DownloadError, match=r"has more than 0\.001 GiB"):
        fetch(server.url("/a/corpus.txt"), None, lock)
    assert sum(file.stat().st_size for file in cache.iterdir()) < 2**21


@pytest.mark.parametrize("value", ["x", "0", "-1", "nan"])
def test_an_invalid_limit(lock, monkeypatch, value):
    monkeypatch.setenv("MTRAIN_DOWNLOAD_STALL", value)
    with pytest.raises(UsageError, match="MTRAIN_DOWNLOAD_STALL is"):
        fetch("http://127.0.0.1:9/a", None, lock)


@pytest.mark.parametrize("span", ["bytes 5-9/200", "bytes -", "lines 60000-", "bytes 60000"])
def test_another_range_than_the_one_asked_for_is_not_appended(server, lock, span):
    _leave_a_part(server, lock, n_bytes=60_000)
    server.said_range = span
    assert fetch(server.url("/a/corpus.txt"), None, lock).read_bytes() == CONTENT
    assert server.ranges[-1] is None


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1/x", "ftp://127.0.0.1/x", "file:///etc/passwd"]
)
def test_https_is_redirected_to_https_only(target):
    asked = Request("https://example.org/x")
    with pytest.raises((DownloadError, ValueError)):
        connections.Redirects().redirect_request(asked, io.BytesIO(), 302, "", {}, target)
    again = connections.Redirects().redirect_request(
        asked, io.BytesIO(), 302, "", Message(), "https://example.net/y"
    )
    assert again is not None


# -- ranges ----------------------------------------------------------------------------------


def _answer(status: str, body: bytes, **headers: object) -> bytes:
    """The bytes of a response; `Content_Length=5` becomes the header `Content-Length: 5`."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "\r\n"]).encode() + body


def _cut_then(resumed: Callable[[int], bytes]) -> Callable[[str], Iterable[bytes]]:
    """Announces all of CONTENT and sends 100,000 bytes; a range is answered by `resumed`."""

    def answer(request: str) -> Iterable[bytes]:
        if match := re.search(r"Range: bytes=(\d+)-", request):
            return [resumed(int(match[1]))]
        headers = {"ETag": '"a"', "Content_Length": len(CONTENT)}
        return [_answer("200 OK", CONTENT[:100_000], **headers)]

    return answer


def test_a_range_shorter_than_the_rest_is_continued(lock):
    def resumed(start: int) -> bytes:
        end = min(start + 70_000, len(CONTENT))
        span = f"bytes {start}-{end - 1}/{len(CONTENT)}"
        body = CONTENT[start:end]
        return _answer("206 P", body, ETag='"a"', Content_Range=span, Content_Length=len(body))

    with raw_server(_cut_then(resumed)) as server:
        assert fetch(f"{server.address}/x", None, lock).read_bytes() == CONTENT
    assert len(server.requests) > 2


def test_a_range_of_unknown_total_is_complete_at_the_announced_size(lock):
    def resumed(start: int) -> bytes:
        return _answer("206 P", CONTENT[start:], Content_Range=f"bytes {start}-{LAST}/*")

    with raw_server(_cut_then(resumed)) as server:
        assert fetch(f"{server.address}/x", None, lock).read_bytes() == CONTENT
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("span", "headers"),
    [
        (f"{{}}-{LAST}/{LAST + 1}", {"ETag": '"b"'}),
        (f"{{}}-{LAST}/{LAST + 9}", {"ETag": '"a"'}),  # another total than the 200 announced
        (f"{{}}-{LAST - 1}/{LAST + 1}", {"ETag": '"a"'}),  # the body has one byte more
        (f"{{}}-{LAST}/{LAST}", {"ETag": '"a"'}),  # ends behind its total
        (f"{{}}-{LAST}/{LAST + 1}", {"Content_Length": LAST}),
        (f"{{}}-5/{LAST + 1}", {}),
    ],
)
def test_a_range_that_does_not_fit_is_not_appended(lock, span, headers):
    """Neither the bytes of another version nor a shorter file become the result."""

    def resumed(start: int) -> bytes:
        body = b"X" * (len(CONTENT) - start)
        return _answer("206 P", body, Content_Range=f"bytes {span.format(start)}", **headers)

    with raw_server(_cut_then(resumed)) as server:
        with pytest.raises(DownloadError, match="could not be downloaded"):
            fetch(f"{server.address}/x", None, lock)
        assert sum("Range:" not in request for request in server.requests) > 1  # restarted


def test_a_new_version_behind_a_range_is_fetched_whole(lock):
    new, n_requests = CONTENT.upper(), itertools.count()

    def answer(request: str) -> Iterable[bytes]:
        if (n := next(n_requests)) == 0:
            head = {"Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "Content_Length": LAST + 1}
            return [_answer("200 OK", CONTENT[:100_000], **head)]
        later = {"Last_Modified": "Tue, 02 Jan 2024 00:00:00 GMT"}
        if n == 1:
            span = f"bytes 100000-{LAST}/{LAST + 1}"
            return [_answer("206 P", new[100_000:], Content_Range=span, **later)]
        return [_answer("200 OK", new, Content_Length=len(new), **later)]

    with raw_server(answer) as server:
        assert fetch(f"{server.address}/x", None, lock).read_bytes() == new
    assert "Range:" not in server.requests[-1]


@pytest.mark.parametrize(
    ("span", "is_accepted"),
    [
        ("bytes 0-4/5", True),
        ("bytes 0-4/30", False),
        ("bytes 0-4/*", False),
        ("bytes 5-9/10", False),
        ("bytes 0-3/4", False),
    ],
)
def test_a_range_that_was_not_requested(lock, span, is_accepted):
    def answer(request: str) -> Iterable[bytes]:
        return [_answer("206 P", b"text\n", Content_Range=span)]

    with raw_server(answer) as server:
        if is_accepted:
            assert fetch(f"{server.address}/x", None, lock).read_bytes() == b"text\n"
        else:
            with pytest.raises(DownloadError, match=r"could not be downloaded"):
                fetch(f"{server.address}/x", None, lock)


@pytest.mark.parametrize("is_next_command", [False, True])
def test_a_416_does_not_end_a_file_of_greater_length(lock, is_next_command):
    """The size that the first answer announced is remembered, by the next command too."""

    def refuse(start: int) -> bytes:
        return _answer("416 x", b"", Content_Range=f"bytes */{start}")

    def fail(start: int) -> bytes:
        return _answer("503 x", b"")

    with raw_server(_cut_then(fail if is_next_command else refuse)) as server:
        url = f"{server.address}/x"
        with pytest.raises(DownloadError, match="could not be downloaded"):
            fetch(url, None, lock)
        server.answer = _cut_then(refuse)
        with pytest.raises(DownloadError, match="could not be downloaded"):
            fetch(url, None, lock)


# -- answers without end ---------------------------------------------------------------------


def test_the_body_of_a_redirect_is_not_read(lock):
    def answer(request: str) -> Iterable[bytes]:
        if "/final" in request:
            return [_answer("200 OK", b"text\n", Content_Length=5)]
        return itertools.chain([_answer("302 x", b"", Location="/final")], [b"x" * 65536] * 1000)

    with raw_server(answer) as server:
        assert fetch(f"{server.address}/x", None, lock).read_bytes() == b"text\n"
    assert server.n_sent < 500 * 65536


CHUNKED = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhi\n\r\n"


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        ("", "HTTP/1.1 100 Continue\r\n\r\n"),
        ("HTTP/1.1 200 OK\r\nX: ", "x"),
        ("HTTP/1.1 302 x\r\nX: ", "x"),
        ("HTTP", "x"),
        (f"{CHUNKED}0\r\n", "X: 1\r\n"),
        (CHUNKED, "0"),
    ],
)
def test_bytes_now_and_then_that_are_no_content(lock, monkeypatch, start, piece):
    """The limit holds for the status, headers, trailers and the sizes of chunks as well."""

    def answer(request: str) -> Iterable[bytes]:
        yield start.encode()
        for _ in range(300):  # up to three seconds
            yield piece.encode()
            time.sleep(0.01)

    monkeypatch.setenv("MTRAIN_DOWNLOAD_STALL", "0.2")
    with (
        raw_server(answer) as server,
        pytest.raises(DownloadError, match=r"sends less than 65,536 bytes in 0\.2 seconds"),
    ):
        fetch(f"{server.address}/x", None, lock)


@pytest.mark.parametrize(
    ("start", "piece"),
    [("", "HTTP/1.1 100 Continue\r\n\r\n"), (f"{CHUNKED}0\r\n", "X: 1\r\n")],
)
def test_headers_without_end(lock, start, piece):
    def answer(request: str) -> Iterable[bytes]:
        return itertools.chain([start.encode()], [piece.encode() * 10_000] * 100)

    with (
        raw_server(answer) as server,
        pytest.raises(DownloadError, match="its headers have more than 262,144 bytes"),
    ):
        fetch(f"{server.address}/x", None, lock)


def test_a_restart_of_a_large_file_is_progress(server, lock, monkeypatch):
    """Also the bytes that the discarded part had reached already."""
    _leave_a_part(server, lock, n_bytes=60_000)
    monkeypatch.setenv("MTRAIN_DOWNLOAD_STALL", "0.6")
    monkeypatch.setattr(downloads, "PROGRESS_BYTES", 50)
    server.etag, server.files["/a/corpus.txt"] = '"v2"', CONTENT[:1000]
    server.pause_s = 0.001
    assert fetch(server.url("/a/corpus.txt"), None, lock).read_bytes() == CONTENT[:1000]


def _leave_a_part(server: Server, lock: Lock, n_bytes: int) -> None:
    """What a download leaves that was cut for good after so many bytes."""
    server.cut_after, server.knows_range = n_bytes, False
    with pytest.raises(DownloadError):
        fetch(server.url("/a/corpus.txt"), None, lock)
    server.cut_after, server.knows_range = None, True
    server.ranges.clear()
