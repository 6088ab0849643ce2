"""Open media given as a path, bytes, a data URL or, only if allowed, a web address.

The result is an open binary file, so that a long video is never in memory as a whole: what is
decoded or downloaded goes to a temporary file unless it is short. No medium is decoded here.
"""

import binascii
import io
import tempfile
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, cast

from ..errors import RequestError, SourceError
from . import web

Origin = str | Path | bytes

CHUNK_BYTES = 1 << 16
HELD_BYTES = 1 << 20
HEADER_LETTERS = 4096  # of a data URL


@dataclass(frozen=True)
class Access:
    """Which origins are allowed: a server lets its clients name neither files nor the web.

    With `public_only`, web addresses of this machine and its network are refused.
    `max_bytes` limits bytes, data URLs and downloads. `timeout_s` limits each wait for a server,
    and the whole time of its answer after the header.
    """

    files: bool = True
    web: bool = False
    public_only: bool = False
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
        _check_size(memoryview(origin).nbytes, "bytes", access)
        return _held(io.BytesIO(origin), "bytes")
    if not isinstance(origin, str | Path):
        raise RequestError(
            f"[media] needed a path, a URL or bytes, got {type(origin).__name__}. "
            "Hand over one of these."
        )
    scheme = str(origin)[:8].split(":", 1)[0].lower() if isinstance(origin, str) else ""
    if scheme == "data":
        return _written(_decoded(str(origin)), "data URL", access)
    if scheme in ("http", "https"):
        return _written(_downloaded(str(origin), access), str(origin), access)
    return _opened(Path(origin), access)


def _written(pieces: Iterable[bytes], where: str, access: Access) -> BinaryIO:
    """Write content to a temporary file, which stays in memory as long as it is short."""
    with ExitStack() as undo:
        file = undo.enter_context(tempfile.SpooledTemporaryFile(HELD_BYTES))
        n_bytes = 0
        for piece in pieces:
            n_bytes += len(piece)
            _check_size(n_bytes, where, access)
            file.write(piece)
        held = _held(cast(BinaryIO, file), where)
        undo.pop_all()
    return held


def _held(file: BinaryIO, where: str) -> BinaryIO:
    if not file.seek(0, io.SEEK_END):
        raise RequestError(f"[{where}] needed media, got no bytes. Check where they come from.")
    file.seek(0)
    return file


def _check_size(n_bytes: int, where: str, access: Access) -> None:
    if n_bytes > access.max_bytes:
        raise RequestError(
            f"[{where[:200]}] needed at most {access.max_bytes:,} bytes, got {n_bytes:,} or more. "
            "Send a smaller file."
        )


def _decoded(url: str) -> Iterator[bytes]:
    """Decode a data URL piece by piece."""
    comma = url.find(",", 0, HEADER_LETTERS)
    if comma < 0:
        raise RequestError(
            "[data URL] needed data:<type>;base64,<content>, got no comma. Check the URL."
        )
    pieces = _unquoted(url, comma + 1)
    return _from_base64(pieces) if url[:comma].lower().endswith(";base64") else pieces


def _unquoted(text: str, start: int) -> Iterator[bytes]:
    """Resolve percent escapes piece by piece, never cutting through one."""
    while start < len(text):
        end = start + CHUNK_BYTES
        if "%" in (torn := text[end - 2 : end]):
            end -= len(torn) - torn.index("%")
        yield urllib.parse.unquote_to_bytes(text[start:end])
        start = end


def _from_base64(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Decode base64 that may have line breaks and ends at its padding."""
    rest = b""
    try:
        for piece in pieces:
            letters = rest + b"".join(piece.split())
            padding = letters.find(b"=")
            whole = (len(letters) if padding < 0 else padding) // 4 * 4
            yield binascii.a2b_base64(letters[:whole], strict_mode=True)
            rest = letters[whole:]
            if len(rest) > 4:
                raise binascii.Error("data after padding")
        yield binascii.a2b_base64(rest, strict_mode=True)
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
    if not file.seekable():  # a pipe
        with file:
            return _written(iter(lambda: file.read(CHUNK_BYTES), b""), str(path), access)
    if is_empty:
        file.close()
        raise RequestError(f"[{path}] needed media, got an empty file. Check where it comes from.")
    return file


def name_of(origin: object) -> str:
    """Return an origin's name for messages, without its content."""
    if isinstance(origin, str | Path) and str(origin)[:5].lower() != "data:":
        return str(origin)[:200]
    return "data URL" if isinstance(origin, str) else type(origin).__name__


def _downloaded(url: str, access: Access) -> Iterator[bytes]:
    if not access.web:
        raise RequestError(
            f"[{url[:200]}] needed a file or a data URL, got a web address, which is not allowed "
            "unless asked for. Download it first, or allow the web."
        )
    deadline = time.monotonic() + access.timeout_s
    try:
        with web.opener(access.public_only).open(url, timeout=access.timeout_s) as answer:
            while chunk := answer.read1(CHUNK_BYTES):
                yield chunk
                if time.monotonic() > deadline:
                    raise TimeoutError(f"more than {access.timeout_s:g} s")
    except (HTTPException, OSError, ValueError) as error:  # ValueError: an address that is none
        raise SourceError(
            f"[{url[:200]}] needed a download, got: {error}. Check the address, or try again."
        ) from error
