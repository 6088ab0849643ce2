"""Prepare a prompt: convert text and media to ids and input embeddings.

Here files (media), placeholders (dialog) and towers (gemma4) meet, which do not import each other.
A tower is loaded only when the prompt holds a medium for it. L positions, H hidden size.
"""

import hashlib
import itertools
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from .dialog import template
from .dialog.interface import TokenizerLike
from .dialog.parts import Medium
from .dialog.placeholders import SoftTokens, Span, clip_span, picture_span, sound_span
from .engine.feature_cache import FeatureCache
from .engine.request import Prepared, Progress, no_progress
from .errors import RequestError
from .gemma4.config import Gemma4Config
from .gemma4.model import Model
from .gemma4.towers.config import AUDIO, VISION
from .gemma4.towers.tower import no_tower
from .media.images import Patches, image_patches, read_image
from .media.origin import Access
from .media.processor import Processor
from .media.sound import Mel, read_sound, sound_mels
from .media.video import clip_patches, make_clip, read_video

TOWER_OF = {"image": VISION, "video": VISION, "audio": AUDIO}


class PreparedMedium(NamedTuple):
    """A medium ready for the model: its soft tokens, and the pieces that a tower encodes.

    A piece is the input of a tower, or already its features. `mark` is a negative number made of
    the content: equal media have equal marks.
    """

    span: Span
    pieces: tuple[Patches | Mel | mx.array, ...]
    mark: int = -1


Pieces = tuple[Span, tuple[Patches, ...] | tuple[Mel, ...]]
# The media of a prompt in order, each with the key that identifies it.
Seen = list[tuple[Hashable, PreparedMedium]]


class ReadPrompt(NamedTuple):
    """A prompt whose media are read but not encoded: no weights were needed so far.

    `keys` are the ids, but each soft token of a medium is a negative number made of its content,
    since all pictures have the same soft tokens.
    """

    ids: list[int]
    keys: list[int]
    media: tuple[PreparedMedium, ...] = ()


def read_prompt(
    args: Gemma4Config,
    settings: Processor,
    tokenizer: TokenizerLike,
    prompt: template.Rendered,
    access: Access,
    *,
    image_tokens: int | None = None,
    known: Sequence[PreparedMedium] = (),
) -> ReadPrompt:
    """Return the ids of a prompt, and its media ready for the towers; any thread may do so.

    The first media may be `known` from another prompt.
    Raises: RequestError for media that cannot be used or are not as many as the placeholders;
    SourceError for a file or address that cannot be read.
    """
    for medium in prompt.media:
        require_tower(args, medium.kind)
    context = args.text_config.max_position_embeddings
    media = prepare_media(prompt.media, settings, access, context, image_tokens, known)
    spans = [each.span for each in media]
    ids = template.encode(tokenizer, prompt, spans, soft_tokens(args))
    return ReadPrompt(ids, _keys(ids, media, args.soft_token_ids), tuple(media))


def embed_prompt(
    model: Model, read: ReadPrompt, on_media: Progress = no_progress
) -> tuple[Prepared, list[PreparedMedium]]:
    """Encode a prompt's media, and return it ready for the engine beside its encoded media."""
    if not read.media:
        return Prepared(read.ids, keys=read.keys), []
    media = with_features(model, read.media, on_media)
    return Prepared(read.ids, embed_with_media(model, read.ids, media), read.keys), media


def embedding_steps(
    model: Model, read: ReadPrompt, features: FeatureCache
) -> Iterator[Prepared | None]:
    """Yield None for each picture, frame or sound that is encoded, then the prompt for the engine.

    Features of media that were encoded before come from the cache.
    """
    media = []
    for medium in read.media:
        pieces = features.get(medium.mark)
        if pieces is None:
            made = []
            for each in _encoded(model, medium.pieces):
                made.append(each)
                yield None
            pieces = tuple(made)
            features.put(medium.mark, pieces)
        media.append(medium._replace(pieces=pieces))
    embeddings = embed_with_media(model, read.ids, media) if media else None
    yield Prepared(read.ids, embeddings, read.keys)


def prepare(
    model: Model,
    tokenizer: TokenizerLike,
    prompt: template.Rendered,
    *,
    image_tokens: int | None = None,
    http: bool = False,
    seen: Seen | None = None,
    on_media: Progress = no_progress,
) -> Prepared:
    """Return the ids of a prompt, and its embeddings with the features of its media.

    `image_tokens` limits the soft tokens of an image, by default as the folder's processor file
    states; `http` allows downloads. `seen` holds the media of the last prompt and gets those of
    this one: media that both prompts begin with are not read again. `on_media` gets how many
    pictures, frames and sounds are done, and of how many.
    Raises: as `read_prompt`.
    """
    seen = [] if seen is None else seen
    sources = [(medium.mark(), image_tokens) for medium in prompt.media]
    read = read_prompt(
        model.args,
        processor(model),
        tokenizer,
        prompt,
        Access(web=http),
        image_tokens=image_tokens,
        known=known_media(sources, seen),
    )
    prepared, media = embed_prompt(model, read, on_media)
    seen[:] = zip(sources, media, strict=True)
    return prepared


def _keys(ids: Sequence[int], media: Sequence[PreparedMedium], soft: Collection[int]) -> list[int]:
    """Return the ids with the runs of soft tokens marked by the media that fill them."""
    keys = list(ids)
    starts = (at for at, id in enumerate(ids) if id in soft and (not at or ids[at - 1] not in soft))
    for medium in media:
        for start, (_, count) in zip(starts, medium.span.runs, strict=False):
            keys[start : start + count] = [medium.mark] * count
    return keys


def require_tower(args: Gemma4Config, kind: str) -> None:
    """Refuse a kind of media that a model has no tower for."""
    if TOWER_OF[kind] not in args.towers:
        raise no_tower(TOWER_OF[kind])


def processor(model: Model) -> Processor:
    """Return how the model wants its media prepared."""
    folder = model.resources.folder
    return Processor() if folder is None else _read_processor(folder)


@cache
def _read_processor(folder: Path) -> Processor:
    return Processor.from_folder(folder)


def soft_tokens(args: Gemma4Config) -> dict[str, SoftTokens]:
    """Return the ids that features of each kind are written with, for the towers that there are."""
    every = {
        "image": (args.boi_token_id, args.image_token_id, args.eoi_token_id),
        "audio": (args.boa_token_id, args.audio_token_id, args.eoa_token_id),
        "video": (args.boi_token_id, args.video_token_id, args.eoi_token_id),
    }
    known: dict[str, SoftTokens] = {}
    for kind, (begin, soft, end) in every.items():
        if begin is not None and soft is not None and end is not None:
            known[kind] = SoftTokens(begin, soft, end)
    return known


def known_media(keys: Sequence[Hashable], seen: Seen) -> list[PreparedMedium]:
    """Return the prepared media that a prompt begins with, as the last prompt did."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1][0], zip(keys, seen, strict=False))
    return [each for _, (_, each) in pairs]


def prepare_media(
    media: Sequence[Medium],
    settings: Processor,
    access: Access,
    context: int,
    image_tokens: int | None = None,
    known: Sequence[PreparedMedium] = (),
) -> list[PreparedMedium]:
    """Read media one by one and prepare each for its tower; the first ones may be `known`.

    Soft tokens are limited, because a file of one pixel takes as much memory here as any picture.
    Raises: RequestError as soon as the media take more soft tokens than `context`.
    """
    prepared: list[PreparedMedium] = []
    taken = 0
    for index, medium in enumerate(media):
        if index < len(known):
            prepared.append(known[index])
        else:
            prepare_one = PREPARERS[medium.kind]
            span, pieces = prepare_one(medium.source, settings, access, image_tokens)
            prepared.append(PreparedMedium(span, pieces, _mark(pieces)))
        taken += sum(count for _, count in prepared[-1].span.runs)
        if taken > context:
            raise RequestError(
                f"[prompt] needed media of at most {context:,} soft tokens, the model's context, "
                f"got {taken:,} or more. Send fewer, or shorter ones."
            )
    return prepared


def _mark(pieces: Sequence[Patches | Mel]) -> int:
    """Return a negative number made of what a tower will see."""
    digest = hashlib.sha256()
    for piece in pieces:
        arrays = [piece.frames] if isinstance(piece, Mel) else [piece.patches, piece.positions]
        for array in arrays:
            digest.update(f"{type(piece).__name__}{array.shape}".encode())
            digest.update(array.tobytes())
    return -1 - int.from_bytes(digest.digest()[:7], "big")


def _prepare_image(
    source: Any, settings: Processor, access: Access, image_tokens: int | None
) -> Pieces:
    patches = image_patches(read_image(source, access), settings.image, image_tokens)
    return picture_span(patches.soft_tokens), (patches,)


def _prepare_sound(
    source: Any, settings: Processor, access: Access, image_tokens: int | None
) -> Pieces:
    mels = sound_mels(read_sound(source, settings.sound, access=access), settings.sound)
    return sound_span([mel.soft_tokens for mel in mels]), tuple(mels)


def _prepare_video(
    source: Any, settings: Processor, access: Access, image_tokens: int | None
) -> Pieces:
    is_frames = isinstance(source, np.ndarray | list | tuple)
    clip = (
        make_clip(source, settings.video)
        if is_frames
        else read_video(source, settings.video, access=access)
    )
    frames = clip_patches(clip, settings.video)
    return clip_span(clip.stamps, [frame.soft_tokens for frame in frames]), tuple(frames)


PREPARERS: Mapping[str, Callable[[Any, Processor, Access, int | None], Pieces]] = {
    "image": _prepare_image,
    "audio": _prepare_sound,
    "video": _prepare_video,
}


def with_features(
    model: Model, media: Sequence[PreparedMedium], on_media: Progress = no_progress
) -> list[PreparedMedium]:
    """Return the media with features in place of all other pieces."""
    seen = []
    total = sum(len(each.pieces) for each in media)
    done = 0
    on_media(done, total)
    for medium in media:
        features = []
        for each in _encoded(model, medium.pieces):
            features.append(each)
            done += 1
            on_media(done, total)
        seen.append(medium._replace(pieces=tuple(features)))
    return seen


def embed_with_media(model: Model, ids: Sequence[int], media: Sequence[PreparedMedium]) -> mx.array:
    """Return a prompt's input embeddings, with the features of its media at their soft tokens.

    Shapes: ids [L] -> [1, L, H], evaluated, because prefill may run on another stream.
    Raises: RequestError when there are more features of a kind than places, or fewer.
    """
    features: dict[str, list[Any]] = {kind: [] for kind in TOWER_OF}
    for span, pieces, _ in media:
        features[span.kind] += pieces
    x = model.embed_media(
        mx.array([list(ids)]), features["image"], features["audio"], features["video"]
    )
    mx.eval(x)
    return x


def _encoded(model: Model, pieces: Iterable[Patches | Mel | mx.array]) -> Iterator[mx.array]:
    """Yield the features of pieces, each as soon as it is encoded."""
    for piece in pieces:
        features = _features(model, piece)
        mx.eval(features)  # at once, or the activations of all media would be in memory
        yield features


def _features(model: Model, piece: Patches | Mel | mx.array) -> mx.array:
    if isinstance(piece, mx.array):
        return piece
    if isinstance(piece, Mel):
        return model.audio_features(mx.array(piece.frames))
    return model.image_features(mx.array(piece.patches), mx.array(piece.positions))
