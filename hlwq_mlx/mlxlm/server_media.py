"""Replace four functions of mlx-lm's server, for sounds, videos and safe downloads.

mlx-lm 0.32.2 knows content parts with images alone, of which it fetches any web address at any
length, and decodes them without their orientation. The request's way through the server stays as
it is: parts are found, replaced if they name web addresses, decoded, and their places in the prompt
marked for its prompt cache. Each medium travels through mlx-lm as a `str` subclass that carries
its kind.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from ..dialog.parts import Medium, normalize_part
from ..errors import RequestError
from ..gemma4.config import Gemma4Config
from ..media.origin import Access, open_origin
from ..prompt import PreparedMedium, require_tower
from .patches import replace

WEB = ("http://", "https://")


class MediaUrl(str):
    """A data URL that knows which kind of media it holds."""

    kind: str

    def __new__(cls, medium: Medium) -> "MediaUrl":
        made = super().__new__(cls, medium.source)
        made.kind = medium.kind
        return made


def patch_server(server: ModuleType, args: Gemma4Config, *, http: bool = False) -> None:
    """Replace the server's functions; `http` lets it download what a client names.

    Raises: DeviceError for an mlx-lm whose functions are others.
    """
    inline = inliner(args, Access(files=False, web=http))
    make_vision = vision_maker(server.Vision, args.soft_token_ids)
    replace(server, "_image_url", "part", lambda _: media_url)
    replace(server, "_inline_image_urls", "messages", lambda _: inline)
    replace(server, "_decode_image", "url", lambda _: as_medium)
    replace(server, "_make_vision", "prompt urls pixel_values token_id", lambda _: make_vision)


def media_url(part: Any) -> MediaUrl | None:
    """Return where the medium of a content part comes from, None for a text.

    Raises: RequestError for a part that is neither.
    """
    medium = normalize_part(part, "content")
    return MediaUrl(medium) if isinstance(medium, Medium) else None


def inliner(args: Gemma4Config, access: Access) -> Callable[[Sequence[Mapping[str, Any]]], None]:
    """Return a function that replaces web addresses in messages by data URLs.

    It checks all parts on the way: its errors reach the client with status 400.
    """

    def inline(messages: Sequence[Mapping[str, Any]]) -> None:
        for message in messages:
            content = message.get("content")
            for part in content if isinstance(content, list) else ():
                url = media_url(part)
                if url is None:
                    continue
                require_tower(args, url.kind)
                if url.startswith(WEB):
                    _replace(part, url, access)

    return inline


def _replace(part: dict[str, Any], url: MediaUrl, access: Access) -> None:
    with open_origin(str(url), access) as file:
        data = base64.b64encode(file.read()).decode()
    part.clear()
    part.update({"type": url.kind, "url": f"data:;base64,{data}"})


def as_medium(url: MediaUrl) -> Medium:
    """Return the medium undecoded: our processor knows how each kind is prepared."""
    return Medium(url.kind, str(url))


def vision_maker(vision: type, soft_token_ids: Sequence[int]) -> Callable[..., Any]:
    """Return a function that marks media in a prompt: the cache must tell those of one size apart.

    A medium is several runs of soft tokens when it is a video or a long sound.
    """

    def make_vision(
        prompt: Sequence[int],
        *,
        urls: Sequence[str],
        pixel_values: Sequence[PreparedMedium],
        token_id: int,
    ) -> Any:
        cache_key = list(prompt)
        is_soft = [token in soft_token_ids for token in prompt]
        begins = [at for at, soft in enumerate(is_soft) if soft and not (at and is_soft[at - 1])]
        if len(begins) != sum(len(span.runs) for span, *_ in pixel_values):
            raise RequestError(
                f"[prompt] needed media in the tokens {list(soft_token_ids)}, got them as letters. "
                "The tokenizer does not know every marker: take the model's own tokenizer.json."
            )
        starts = []
        for url, (span, *_) in zip(urls, pixel_values, strict=True):
            mark = -1 - int(hashlib.sha256(url.encode()).hexdigest()[:15], 16)
            starts.append(begins[0])
            for at, (_, count) in zip(begins, span.runs, strict=False):
                cache_key[at : at + count] = [mark] * count
            del begins[: len(span.runs)]
        return vision(pixel_values=list(pixel_values), starts=starts, cache_key=cache_key)

    return make_vision
