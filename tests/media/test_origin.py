import base64
import os
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hlwq_mlx.errors import RequestError, SourceError
from hlwq_mlx.media.images import read_image
from hlwq_mlx.media.origin import LOCAL, Access, name_of, open_origin

CONTENT = bytes(range(256)) * 4
WEB = Access(web=True, max_bytes=4096, timeout_s=3.0)


def read(origin, access=LOCAL):
    with open_origin(origin, access) as file:
        return file.read()


@contextmanager
def server():
    """A web server on this machine: /media, /moved, /file, /endless, /slow, /missing."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            moved = {"/moved": "/media", "/file": "file:///etc/hostname", "/ftp": "ftp://x.test/a"}
            if self.path == "/missing":
                self.send_error(404)
                return
            self.send_response(302 if self.path in moved else 200)
            self.send_header("Location", moved.get(self.path, ""))
            self.end_headers()
            try:
                if self.path == "/media":
                    self.wfile.write(CONTENT)
                while self.path in ("/endless", "/slow"):
                    self.wfile.write(b"x" * (1 if self.path == "/slow" else 1000))
                    self.wfile.flush()
                    time.sleep(0.05 if self.path == "/slow" else 0)
            except OSError:
                self.close_connection = True

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def test_paths_and_bytes(tmp_path):
    path = tmp_path / "a: strange name%20.bin"
    path.write_bytes(CONTENT)
    for origin in (path, str(path), CONTENT, bytearray(CONTENT)):
        assert read(origin) == CONTENT


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64," + base64.b64encode(CONTENT).decode(),
        "DATA:;charset=x;BASE64," + base64.b64encode(CONTENT).decode().replace("=", "%3D"),
        "data:image/png;base64," + base64.encodebytes(CONTENT).decode(),
        "data:," + "".join(f"%{byte:02x}" for byte in CONTENT),
    ],
    ids=["plain", "escaped", "wrapped", "percent"],
)
def test_data_urls(url):
    assert read(url) == CONTENT


def test_a_long_data_url_is_decoded_piece_by_piece():
    content = CONTENT * 300
    letters = base64.b64encode(content).decode()
    for wrapped in (letters, "\n".join(letters), letters.replace("A", "%41")):
        assert read(f"data:;base64,{wrapped}") == content
    assert read("data:," + "%41b" * 50_000) == b"Ab" * 50_000


def test_a_pipe_is_read_to_its_end(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(CONTENT,))
    writer.start()
    assert read(tmp_path / "pipe") == CONTENT
    writer.join()


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,=" + "A" * 1_000_000, "needed base64"),
        ("data:image/png;base64,???=", "needed base64"),
        ("data:image/png;base64,QUJD=QUJD", "needed base64"),
        ("data:image/png;base64,", "no bytes"),
        (b"", "no bytes"),
        (7, "got int"),
        (None, "got NoneType"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_an_origin_that_names_nothing_is_refused(origin, message):
    with pytest.raises(RequestError, match=message):
        open_origin(origin)


def test_an_empty_file_is_named(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    with pytest.raises(RequestError, match=r"empty\.png\] needed media, got an empty file"):
        open_origin(path)


@pytest.mark.parametrize("name", ["missing.png", ".", "x" * 5000, "nul\0byte", "file:///etc/x"])
def test_what_cannot_be_opened_is_one_short_error(tmp_path, name):
    with pytest.raises(SourceError, match="needed a file that can be read") as caught:
        open_origin(f"{tmp_path}/{name}" if ":" not in name else name)
    assert len(str(caught.value)) < 6000


@pytest.mark.parametrize("origin", [b"x" * 11, "data:;base64," + "QUJD" * 4], ids=["bytes", "data"])
def test_what_is_too_large_is_refused(origin):
    with pytest.raises(RequestError, match="at most 10 bytes"):
        open_origin(origin, Access(max_bytes=10))


def test_a_caller_may_be_kept_from_files(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(CONTENT)
    for origin in (path, str(path), "/etc/hostname", f"file://{path}"):
        with pytest.raises(RequestError, match="not allowed here") as caught:
            open_origin(origin, Access(files=False))
        assert "secret" not in str(caught.value)
    assert read(CONTENT, Access(files=False)) == CONTENT


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.png", "HTTPS://example.test/a.png"])
def test_the_web_is_closed_unless_asked_for(url):
    with pytest.raises(RequestError, match="not allowed unless asked for"):
        open_origin(url)


def test_downloads():
    with server() as address:
        assert read(f"{address}/media", WEB) == CONTENT
        assert read(f"{address}/moved", WEB) == CONTENT


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        ("/missing", SourceError, "404"),
        ("/file", SourceError, "needed a download"),
        ("/ftp", SourceError, "needed a download"),
        ("/endless", RequestError, "at most 4,096 bytes"),
        ("/slow", SourceError, "more than 3 s"),
        ("/nothing", RequestError, "no bytes"),
    ],
)
def test_downloads_that_fail(place, error, message):
    with server() as address, pytest.raises(error, match=message):
        open_origin(f"{address}{place}", WEB)


@pytest.mark.parametrize("url", ["http://[", "http://a b/", "http://", f"http://{'a' * 70}.test/"])
def test_a_malformed_address_is_refused(url):
    with pytest.raises(SourceError, match=r"needed a download, got: .*\. Check the address"):
        open_origin(url, WEB)


def test_a_server_that_is_not_there():
    with server() as address:
        pass
    with pytest.raises(SourceError, match="needed a download"):
        open_origin(f"{address}/media", WEB)


def test_readers_hand_their_access_on():
    with pytest.raises(RequestError, match="not allowed here"):
        read_image("/etc/hostname", Access(files=False))


def test_names_hold_no_content():
    assert name_of("data:image/png;base64,QUJD") == "data URL"
    assert name_of(CONTENT) == "bytes"
    assert name_of("a.png") == "a.png"
