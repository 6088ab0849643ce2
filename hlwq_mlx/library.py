"""The functions for Python users: load a model, then generate text from prompts or messages.

Their names and signatures follow mlx-lm's, with our own options. A model may be anything that
`convert` reads; one that is not converted yet is converted once, into a cache folder.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .dialog import template
from .dialog.interface import AnsweringTokenizer, TokenizerLike
from .dialog.messages import Message
from .dialog.stop import AnswerText
from .dialog.tokenizer import Tokenizer
from .disk.cache import CACHE_VARIABLE as CACHE_VARIABLE
from .engine.answer import generate_tokens
from .engine.draft import Drafter
from .engine.drafters import find_drafter
from .engine.mtp import ModelDrafter
from .engine.pace import Credit
from .engine.prefix_cache import MAX_BYTES, PrefixCache
from .engine.request import (
    PREFILL_STEP,
    Prepared,
    Progress,
    Request,
    no_progress,
    room_for_answer,
)
from .engine.sampling import Sampling
from .engine.step import Chosen
from .errors import RequestError
from .folder import loading, side_files
from .folder.folder import Folder
from .gemma4.caches import WHOLE, Caching
from .gemma4.model import Model
from .source.layout import DRAFTER
from .write.cache import DEMO as DEMO
from .write.cache import DEMO_VARIANT as DEMO_VARIANT
from .write.cache import converted_folder as converted_folder
from .write.cache import open_drafter
from .write.cache import open_folder as open_folder

DEFAULT_MAX_TOKENS = 256

Prompt = str | Sequence[int] | Sequence[Message] | template.Rendered
Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class GenerationResponse:
    """A piece of an answer, with the fields of mlx-lm's class of this name.

    Rates are tokens a second, `peak_memory` GB; `finish_reason` is `stop` or `length` in the last
    piece. A token is `from_draft` that took no pass of its own; `passes` brought all so far.
    Shapes: logprobs float32 [V].
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
    passes: int = 0


@dataclass
class Session:
    """State that a conversation keeps between prompts, so that the next reads only what is new.

    What was read takes at most `max_bytes` of memory. `credit` is what drafts may still cost.
    """

    max_bytes: int = MAX_BYTES
    media: list[Any] = field(default_factory=list)  # what was made of the last prompt's media
    credit: Credit = field(default_factory=Credit)
    _prefixes: PrefixCache | None = None
    _model: Model | None = None
    _caching: Caching = WHOLE

    def prefixes(self, model: Model, caching: Caching) -> PrefixCache:
        """Return what was read; with another model or caching than before that is nothing."""
        is_same = self._model is model and self._caching == caching
        if self._prefixes is None or not is_same:
            self._prefixes = PrefixCache(partial(model.make_cache, caching), self.max_bytes)
            self._model, self._caching = model, caching
        return self._prefixes

    def forget(self) -> None:
        """Clear the state: the next prompt is read from its beginning."""
        self._prefixes = None
        self.media.clear()


def load(model: str | Path, variant: str | None = None) -> tuple[Model, Tokenizer]:
    """Load a model and its tokenizer.

    `model` is a hub id (`owner/name`, `owner/name/PQ5`), a source folder or a converted folder.
    Raises: an HLWQError that says what is missing.
    """
    return load_folder(open_folder(str(model), variant))


def load_folder(folder: Folder) -> tuple[Model, Tokenizer]:
    """Load the model and the tokenizer of a folder that is open.

    Raises: as `load`.
    """
    tokenizer = side_files.open_tokenizer(folder)  # first, so that damage is found before the work
    return loading.load_folder(folder), tokenizer


def load_drafter(model: Model, source: str | Path | None = None) -> ModelDrafter:
    """Load a drafter for a model, to be given to `generate` and `stream_generate` as `draft`.

    `source` is a hub id or a folder; by default it is `drafter/` within the model's folder.
    Raises: an HLWQError that says what is missing or does not fit.
    """
    beside = (model.resources.folder or Path()) / DRAFTER
    return ModelDrafter(model, loading.load_drafter(open_drafter(str(source or beside))))


def prompt_ids(
    tokenizer: TokenizerLike, prompt: Prompt, *, tools: Tools = (), thinking: bool = False
) -> list[int]:
    """Return the ids of a prompt without media: raw text, or messages by the chat template."""
    rendered = _render(tokenizer, prompt, tools=tools, thinking=thinking)
    if isinstance(rendered, template.Rendered):
        return template.encode(tokenizer, rendered)
    return rendered


def _render(
    tokenizer: TokenizerLike, prompt: Prompt, *, tools: Tools, thinking: bool
) -> template.Rendered | list[int]:
    if isinstance(prompt, list | tuple) and any(isinstance(item, Mapping) for item in prompt):
        return template.render(tokenizer, prompt, tools=tools, thinking=thinking)
    if tools or thinking:
        raise RequestError(
            "[prompt] needed messages for tools and thinking, which a chat template renders, got "
            "text or token ids. Give messages, or leave these options out."
        )
    if isinstance(prompt, template.Rendered):
        return prompt
    if isinstance(prompt, str):
        return template.Rendered(prompt, breaks=getattr(prompt, "breaks", ()))
    ids = np.array(prompt)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise RequestError(
            f"[prompt] needed text, messages or a row of token ids, got {ids.dtype} of shape "
            f"{ids.shape}. Give one prompt."
        )
    return [int(token) for token in ids]


def stream_generate(
    model: Model,
    tokenizer: AnsweringTokenizer,
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
    draft: str | Drafter | None = None,
    on_media: Progress = no_progress,
    on_prefill: Progress = no_progress,
    **options: Any,
) -> Iterator[GenerationResponse]:
    """Yield the answer piece by piece; the last piece has a `finish_reason`.

    `prompt` is text, token ids or messages, which may contain images, sounds and videos as parts
    and offer `tools` in OpenAI's form. `image_tokens` limits the soft tokens of an image (70, 140,
    280, 560 or 1120), `http` allows downloads of media, `caching` is how keys and values are kept.
    Pass the same `session` with every prompt of a conversation, and nothing is read twice. An
    answer ends before the first text of `stop`, after `max_tokens` (-1 is no limit), or where the
    context ends, which it shares with the prompt. `draft` guesses tokens, so that a pass brings
    several of the same answer: a drafter, or `lookup` for what followed the same tokens before.
    `options` are the fields of `Sampling` (temp,
    top_p, top_k, min_p), greedy by default.
    Raises: RequestError for a prompt or option that cannot be served; SourceError for media that
    cannot be read.
    """
    rendered = _render(tokenizer, prompt, tools=tools, thinking=thinking)
    session = session or Session(max_bytes=0)
    media = {"image_tokens": image_tokens, "http": http, "on_media": on_media}
    prepared = _prepare(model, tokenizer, rendered, session, **media)
    context = model.args.text_config.max_position_embeddings
    request = Request(
        prepared,
        (sampling or Sampling()).override(**options),
        room_for_answer(len(prepared.ids), max_tokens, context),
        tokenizer.eos_token_ids,
        caching,
        prefill_step,
        on_prefill,
    )
    prefixes, drafter = session.prefixes(model, caching), find_drafter(draft)
    tokens = generate_tokens(model, request, prefixes, drafter, session.credit)
    stops = [stop] if isinstance(stop, str) else stop
    yield from _answer(tokenizer, tokens, request, stops)


def _prepare(
    model: Model,
    tokenizer: AnsweringTokenizer,
    rendered: template.Rendered | list[int],
    session: Session,
    **options: Any,
) -> Prepared:
    if not isinstance(rendered, template.Rendered):
        session.media.clear()
        return Prepared(rendered)
    if rendered.media:
        from .prompt import prepare  # decoders and towers, which most prompts do not need

        return prepare(model, tokenizer, rendered, seen=session.media, **options)
    session.media.clear()
    return Prepared(template.encode(tokenizer, rendered))


def _answer(
    tokenizer: AnsweringTokenizer, tokens: Iterable[Chosen], request: Request, stops: Sequence[str]
) -> Iterator[GenerationResponse]:
    """Turn tokens into pieces of text, up to the answer's end."""
    text = AnswerText(tokenizer.detokenizer, stops)
    clock = _Clock(len(request.prompt.ids))
    for token, scores, is_drafted in tokens:
        clock.tick(is_drafted=is_drafted)
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
        self.tokens = self._passes = 0
        self._is_drafted = False
        self._prompt_s = 0.0
        self._begun = time.perf_counter()

    def tick(self, *, is_drafted: bool) -> None:
        self._is_drafted = is_drafted
        self._passes += not is_drafted
        if not self.tokens:  # the time up to the first token is the prompt's
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
            from_draft=self._is_drafted,
            prompt_tokens=self._prompt_tokens,
            prompt_tps=self._prompt_tokens / self._prompt_s,
            generation_tokens=self.tokens,
            generation_tps=self.tokens / (time.perf_counter() - self._begun),
            peak_memory=mx.get_peak_memory() / 1e9,
            finish_reason=finish_reason,
            passes=self._passes,
        )


def generate(
    model: Model,
    tokenizer: AnsweringTokenizer,
    prompt: Prompt,
    verbose: bool = False,
    **options: Any,
) -> str:
    """Return the whole answer; `verbose` prints it as it comes, as mlx-lm does.

    Options are those of `stream_generate`.
    """
    from .cli import print_stream

    responses = stream_generate(model, tokenizer, prompt, **options)
    if verbose:
        return print_stream(responses)
    return "".join(response.text for response in responses)
