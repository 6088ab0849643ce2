"""Where media come from: a path, bytes, a data URL or, only if allowed, the web.

Gives an open binary file, so that a long video on disk is never read whole. It decodes nothing.
"""

import binascii
import io
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

from ..errors import RequestError, SourceError

Origin = str | Path | bytes

CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Access:
    """What a caller may name: a server lets its clients name neither files nor the web.

    `max_bytes` bounds what is taken into memory (bytes, data URLs and downloads), `timeout_s` each
    wait for a server and the whole of what it sends after its header.
    """

    files: bool = True
    web: bool = False
    max_bytes: int = 256 << 20
    timeout_s: float = 60.0


LOCAL = Access()


def open_origin(origin: Origin, access: Access = LOCAL) -> BinaryIO:
    """Open what `origin` names for reading; the caller closes it.

    A string that starts with `data:`, `http://` or `https://` is a URL, any other is a path.
    Raises: RequestError when it is empty, malformed, too large or not allowed; SourceError when a
    file or server cannot be read.
    """
    if isinstance(origin, bytes | bytearray | memoryview):
        return _held(bytes(origin), "bytes", access)
    if not isinstance(origin, str | Path):
        raise RequestError(
            f"[media] needed a path, a URL or bytes, got {type(origin).__name__}. "
            "Hand over one of these."
        )
    scheme = str(origin).split(":", 1)[0].lower() if isinstance(origin, str) else ""
    if scheme == "data":
        return _held(_decoded(str(origin), access), "data URL", access)
    if scheme in ("http", "https"):
        return _held(_downloaded(str(origin), access), str(origin), access)
    return _opened(Path(origin), access)


def _held(content: bytes, where: str, access: Access) -> BinaryIO:
    if not content:
        raise RequestError(f"[{where}] needed media, got no bytes. Check where they come from.")
    _check_size(len(content), where, access)
    return io.BytesIO(content)


def _check_size(n_bytes: int, where: str, access: Access) -> None:
    if n_bytes > access.max_bytes:
        raise RequestError(
            f"[{where}] needed at most {access.max_bytes:,} bytes, got {n_bytes:,} or more. "
            "Send a smaller file."
        )


def _decoded(url: str, access: Access) -> bytes:
    header, comma, body = url[len("data:") :].partition(",")
    if not comma:
        raise RequestError(
            "[data URL] needed data:<type>;base64,<content>, got no comma. Check the URL."
        )
    _check_size(len(body) * 3 // 4, "data URL", access)
    if not header.lower().endswith(";base64"):
        return urllib.parse.unquote_to_bytes(body)
    try:
        text = urllib.parse.unquote_to_bytes(body)
        return binascii.a2b_base64(b"".join(text.split()), strict_mode=True)
    except binascii.Error as error:
        raise RequestError(
            f"[data URL] needed base64 after the comma, got {error}. Encode the content again."
        ) from error


def _opened(path: Path, access: Access) -> BinaryIO:
    if not access.files:
        raise RequestError(
            "[media] needed a data URL, got a file name or something unknown, which is not "
            "allowed here. Send the content itself."
        )
    try:
        path = path.expanduser()
        is_empty = path.is_file() and path.stat().st_size == 0
        file = path.open("rb")
    except (OSError, RuntimeError, ValueError) as error:
        raise SourceError(
            f"[{str(path)[:200]}] needed a file that can be read, got: {error}. Check the path."
        ) from error
    if is_empty:
        file.close()
        raise RequestError(f"[{path}] needed media, got an empty file. Check where it comes from.")
    return file


def name_of(origin: object) -> str:
    """Name an origin in a message, without its content."""
    if isinstance(origin, str | Path) and not str(origin).startswith("data:"):
        return str(origin)[:200]
    return "data URL" if isinstance(origin, str) else type(origin).__name__


def _web() -> urllib.request.OpenerDirector:
    """An opener that knows http and https alone, so that no redirect reaches a file or ftp."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        *(urllib.request.ProxyHandler, urllib.request.UnknownHandler),
        *(urllib.request.HTTPHandler, urllib.request.HTTPSHandler),
        *(urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor),
        urllib.request.HTTPDefaultErrorHandler,
    ):
        opener.add_handler(handler())
    return opener


def _downloaded(url: str, access: Access) -> bytes:
    if not access.web:
        raise RequestError(
            f"[{url[:200]}] needed a file or a data URL, got a web address, which is not allowed "
            "unless asked for. Download it first, or allow the web."
        )
    deadline = time.monotonic() + access.timeout_s
    content = bytearray()
    try:
        with _web().open(url, timeout=access.timeout_s) as answer:
            while chunk := answer.read1(CHUNK_BYTES):
                content += chunk
                _check_size(len(content), url, access)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"more than {access.timeout_s:g} s")
    except RequestError:
        raise
    except (HTTPException, OSError, ValueError) as error:  # ValueError: an address that is none
        raise SourceError(
            f"[{url[:200]}] needed a download, got: {error}. Check the address, or try again."
        ) from error
    return bytes(content)
