"""What Python users call: load a model, then generate text from prompts or messages.

The functions carry mlx-lm's names and shapes; options are ours. A model may be anything `convert`
reads; one that is not converted yet is converted once into a cache folder.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .dialog import template
from .dialog.messages import Message
from .dialog.stop import AnswerText
from .engine.answer import generate_tokens
from .engine.prefix_cache import PrefixCache
from .engine.request import PREFILL_STEP, Prepared, Progress, Request, no_progress
from .engine.sampling import Sampling
from .engine.step import Chosen
from .errors import RequestError, SourceError
from .folder import loading, side_files
from .folder.folder import Folder
from .folder.manifest import FORMAT
from .gemma4.caches import WHOLE, Caching
from .gemma4.model import Model
from .source.locate import find, local_path
from .source.repository import Source
from .write import convert, leftovers

DEMO = Path(__file__).parent / "demo"
DEMO_VARIANT = "PQ5"
DEFAULT_MAX_TOKENS = 256
CACHE_VARIABLE = "HLWQ_CACHE"

logger = logging.getLogger("hlwq_mlx")
Prompt = str | Sequence[int] | Sequence[Message] | template.Rendered
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class GenerationResponse:
    """A piece of an answer, with the fields of mlx-lm's class of this name.

    Rates are tokens a second, `peak_memory` GB; `finish_reason` is `stop` or `length` in the last
    piece. Shapes: logprobs float32 [V].
    """

    text: str
    token: int
    logprobs: mx.array
    from_draft: bool
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory: float
    finish_reason: str | None = None


@dataclass
class Session:
    """What a conversation keeps between its prompts, so that the next reads only what is new."""

    prefix_cache: PrefixCache = field(default_factory=PrefixCache)
    media: list[Any] = field(default_factory=list)  # what was made of the last prompt's media

    def forget(self) -> None:
        """Keep nothing: the next prompt begins anew."""
        self.prefix_cache.forget()
        self.media.clear()


def cache_folder() -> Path:
    """Return where converted models are kept: $HLWQ_CACHE, or ~/.cache/hlwq_mlx."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else Path.home() / ".cache" / "hlwq_mlx"


def converted_folder(model: str, variant: str | None = None) -> Path:
    """Return where the converted folder of a model is, as `open_folder` finds or makes it."""
    return open_folder(model, variant).path


def open_folder(model: str, variant: str | None = None) -> Folder:
    """Open the converted folder of a model, converting it now if that was never done.

    What the publisher left in 16 bits is coded as leftovers.AUTO says; `convert` offers the others.

    Raises: SourceError, CheckpointError, DeviceError as `find` and `convert` do.
    """
    given = Folder.find(local_path(model))
    if given is not None:
        given.require_variant(variant)
        return given
    folder, variant = find(model, variant)
    opened = Source(folder, variant)
    target = cache_folder() / _cache_name(model, opened)
    if not target.is_dir():
        logger.info("converting %s %s once into %s", model, variant or "", target)
        _convert(opened, target)
    else:
        logger.info("using %s, converted before", target)
    return Folder.open(target)


def _convert(opened: Source, target: Path) -> None:
    """Convert into the cache, or take what another process made of the same model meanwhile."""
    try:
        for line in convert.convert(opened, target, leftovers.AUTO).lines():
            logger.info("%s", line)
    except SourceError:
        if not target.is_dir():
            raise
        logger.info("using %s, converted by another process meanwhile", target)


def _cache_name(model: str, opened: Source) -> str:
    """Name a converted folder after the model, the state of its files and how it is converted."""
    files = [*opened.weight_files, *opened.root_files]
    state = [
        (path.resolve().as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files
    ]
    digest = hashlib.sha256(repr((FORMAT, leftovers.AUTO, state)).encode()).hexdigest()[:12]
    name = "--".join(part for part in Path(model).parts[-2:] if part not in ("/", "..", "."))
    return "--".join(filter(None, (name, opened.variant, digest)))


def load(model: str | Path, variant: str | None = None) -> tuple[Model, Any]:
    """Load a model and its tokenizer.

    `model` is a hub id (`owner/name`, `owner/name/PQ5`), a source folder or a converted folder.
    Raises: an HLWQError that says what is missing.
    """
    return load_folder(open_folder(str(model), variant))


def load_folder(folder: Folder) -> tuple[Model, Any]:
    """Load the model and the tokenizer of a folder that is open.

    Raises: as `load`.
    """
    tokenizer = side_files.open_tokenizer(folder)  # what is damaged there is told before the work
    return loading.load_folder(folder), tokenizer


def prompt_ids(
    tokenizer: Any, prompt: Prompt, *, tools: Tools = (), thinking: bool = False
) -> list[int]:
    """Turn a prompt without media into ids: text as it is, messages through the chat template."""
    spelled = _spelled(tokenizer, prompt, tools=tools, thinking=thinking)
    if isinstance(spelled, template.Rendered):
        return template.encode(tokenizer, spelled)
    return spelled


def _spelled(
    tokenizer: Any, prompt: Prompt, *, tools: Tools, thinking: bool
) -> template.Rendered | list[int]:
    if isinstance(prompt, list | tuple) and any(isinstance(item, Mapping) for item in prompt):
        return template.render(tokenizer, prompt, tools=tools, thinking=thinking)
    if tools or thinking:
        raise RequestError(
            "[prompt] needed messages for tools and thinking, which a chat template spells, got "
            "text or token ids. Give messages, or leave these options out."
        )
    if isinstance(prompt, template.Rendered):
        return prompt
    if isinstance(prompt, str):
        return template.Rendered(prompt)
    ids = np.array(prompt)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise RequestError(
            f"[prompt] needed text, messages or a row of token ids, got {ids.dtype} of shape "
            f"{ids.shape}. Give one prompt."
        )
    return [int(token) for token in ids]


def stream_generate(
    model: Model,
    tokenizer: Any,
    prompt: Prompt,
    *,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    sampling: Sampling | None = None,
    stop: str | Sequence[str] = (),
    tools: Tools = (),
    thinking: bool = False,
    image_tokens: int | None = None,
    http: bool = False,
    prefill_step: int = PREFILL_STEP,
    caching: Caching = WHOLE,
    session: Session | None = None,
    on_media: Progress = no_progress,
    on_prefill: Progress = no_progress,
    **options: Any,
) -> Iterator[GenerationResponse]:
    """Yield the answer piece by piece; the last piece has a `finish_reason`.

    `prompt` is text, token ids or messages, which may hold images, sounds and videos as parts, and
    offer `tools` in OpenAI's form. `image_tokens` bounds what an image takes (70, 140, 280, 560 or
    1120), `http` lets media be downloaded, `caching` says how keys and values are kept. `session`,
    handed over with every prompt of a conversation, spares reading again what was read. An answer
    ends before the first text of `stop`; a `max_tokens` of -1 lets it go on. `options` are the
    fields of `Sampling` (temp, top_p, top_k, min_p), greedy by default.
    Raises: RequestError for a prompt or option that cannot be served; SourceError for media that
    cannot be read.
    """
    spelled = _spelled(tokenizer, prompt, tools=tools, thinking=thinking)
    session = session or Session()
    media = {"image_tokens": image_tokens, "http": http, "on_media": on_media}
    request = Request(
        _prepare(model, tokenizer, spelled, session, **media),
        (sampling or Sampling()).override(**options),
        max_tokens,
        tokenizer.eos_token_ids,
        caching,
        prefill_step,
        on_prefill,
    )
    tokens = generate_tokens(model, request, session.prefix_cache)
    stops = [stop] if isinstance(stop, str) else stop
    yield from _answer(tokenizer, tokens, request, stops)


def _prepare(
    model: Model,
    tokenizer: Any,
    spelled: template.Rendered | list[int],
    session: Session,
    **options: Any,
) -> Prepared:
    if not isinstance(spelled, template.Rendered):
        session.media.clear()
        return Prepared(spelled)
    if spelled.media:
        from .prompt import prepare  # decoders and towers, which most prompts do not need

        return prepare(model, tokenizer, spelled, seen=session.media, **options)
    session.media.clear()
    return Prepared(template.encode(tokenizer, spelled))


def _answer(
    tokenizer: Any, tokens: Iterable[Chosen], request: Request, stops: Sequence[str]
) -> Iterator[GenerationResponse]:
    """Turn tokens into pieces of text, up to the answer's end."""
    text = AnswerText(tokenizer.detokenizer, stops)
    clock = _Clock(len(request.prompt.ids))
    for token, scores in tokens:
        clock.tick()
        if token in request.stop_ids:
            yield clock.response(text.finish(), token, scores, "stop")
            return
        piece = text.add(token)
        if text.is_stopped:
            yield clock.response(piece, token, scores, "stop")
            return
        if clock.tokens == request.max_tokens:
            yield clock.response(piece + text.finish(), token, scores, "length")
            return
        yield clock.response(piece, token, scores, None)


class _Clock:
    """Counts an answer's tokens and times them as mlx-lm reports them."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self.tokens = 0
        self._prompt_s = 0.0
        self._begun = time.perf_counter()

    def tick(self) -> None:
        if not self.tokens:  # the first token is the prompt's work
            now = time.perf_counter()
            self._prompt_s, self._begun = now - self._begun, now
        self.tokens += 1

    def response(
        self, text: str, token: int, scores: mx.array, finish_reason: str | None
    ) -> GenerationResponse:
        return GenerationResponse(
            text=text,
            token=token,
            logprobs=scores,
            from_draft=False,
            prompt_tokens=self._prompt_tokens,
            prompt_tps=self._prompt_tokens / self._prompt_s,
            generation_tokens=self.tokens,
            generation_tps=self.tokens / (time.perf_counter() - self._begun),
            peak_memory=mx.get_peak_memory() / 1e9,
            finish_reason=finish_reason,
        )


def generate(
    model: Model, tokenizer: Any, prompt: Prompt, verbose: bool = False, **options: Any
) -> str:
    """Return the whole answer; `verbose` prints it as it comes, as mlx-lm does.

    Options are those of `stream_generate`.
    """
    from .cli import print_stream

    responses = stream_generate(model, tokenizer, prompt, **options)
    if verbose:
        return print_stream(responses)
    return "".join(response.text for response in responses)
