"""What a model sees, hears and watches: a prompt with media to ids and input embeddings.

The one place where files (media), placeholders (dialog) and towers (gemma4), which do not know each
other, meet. A tower is asked only when the prompt holds something for it.
L positions, H hidden size.
"""

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from .dialog import template
from .dialog.parts import Medium
from .dialog.placeholders import SoftTokens, Span, clip_span, picture_span, sound_span
from .engine.decode import Progress
from .errors import RequestError
from .gemma4.config import Gemma4Config
from .gemma4.model import Model
from .gemma4.tower_config import AUDIO, VISION
from .gemma4.towers import no_tower
from .media.images import Patches, image_patches, read_image
from .media.origin import Access
from .media.processor import Processor
from .media.sound import Mel, read_sound, sound_mels
from .media.video import clip_patches, make_clip, read_video

TOWER_OF = {"image": VISION, "video": VISION, "audio": AUDIO}


class View(NamedTuple):
    """A medium as the model takes it in: what stands for it, and what a tower makes features of.

    A piece may be features already.
    """

    span: Span
    pieces: tuple[Patches | Mel | mx.array, ...]


# Media in the order of a prompt: what each is known by, and what was made of it.
Seen = list[tuple[Hashable, View]]


def perceive(
    model: Model,
    tokenizer: Any,
    prompt: template.Rendered,
    *,
    image_tokens: int | None = None,
    http: bool = False,
    seen: Seen | None = None,
    on_media: Progress = lambda done, total: None,
) -> tuple[list[int], mx.array]:
    """Read a prompt's media and put their features in the places of its placeholders.

    `image_tokens` is the most that an image may take, by default what the folder's processor file
    says; `http` allows downloads. `seen`, which comes to hold this prompt's media, spares the next
    prompt those that it begins with: they are not read again. `on_media` is told how many pictures,
    frames and sounds are done.
    Shapes: -> ids [L], input embeddings [1, L, H].
    Raises: RequestError for media that cannot be used or are not as many as the placeholders;
    SourceError for a file or address that cannot be read.
    """
    for medium in prompt.media:
        require_tower(model.args, medium.kind)
    settings, access = processor(model), Access(web=http)
    context = model.args.text_config.max_position_embeddings
    seen = [] if seen is None else seen
    keys = [(medium.mark(), image_tokens) for medium in prompt.media]
    known = known_views(keys, seen)
    views = view_all(prompt.media, settings, access, context, image_tokens, known)
    spans = [each.span for each in views]
    ids = template.encode(tokenizer, prompt, spans, soft_tokens(model.args))
    looked = look(model, views, on_media)
    seen[:] = zip(keys, looked, strict=True)
    return ids, place(model, ids, looked)


def require_tower(args: Gemma4Config, kind: str) -> None:
    """Refuse a kind of media that a model has no tower for."""
    if TOWER_OF[kind] not in args.towers:
        raise no_tower(TOWER_OF[kind])


def processor(model: Model) -> Processor:
    """Return how the model wants its media prepared."""
    return Processor() if model.folder is None else _read_processor(model.folder)


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


def known_views(keys: Sequence[Hashable], seen: Seen) -> list[View]:
    """Return what was made of the media that a prompt begins with as the last one did."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1][0], zip(keys, seen, strict=False))
    return [each for _, (_, each) in pairs]


def view_all(
    media: Sequence[Medium],
    settings: Processor,
    access: Access,
    context: int,
    image_tokens: int | None = None,
    known: Sequence[View] = (),
) -> list[View]:
    """Read media one by one and prepare each for its tower; the first ones may be `known`.

    A picture of one pixel is soon sent, and takes as much memory here as any other.
    Raises: RequestError as soon as they take more soft tokens than `context`.
    """
    views: list[View] = []
    taken = 0
    for place, medium in enumerate(media):
        is_known = place < len(known)
        views.append(known[place] if is_known else view(medium, settings, access, image_tokens))
        taken += sum(count for _, count in views[-1].span.runs)
        if taken > context:
            raise RequestError(
                f"[prompt] needed media of at most {context:,} soft tokens, the model's context, "
                f"got {taken:,} or more. Send fewer, or shorter ones."
            )
    return views


def view(
    medium: Medium, settings: Processor, access: Access, image_tokens: int | None = None
) -> View:
    """Read a medium and prepare it for its tower."""
    return VIEWERS[medium.kind](medium.source, settings, access, image_tokens)


def _view_image(source: Any, settings: Processor, access: Access, image_tokens: int | None) -> View:
    patches = image_patches(read_image(source, access), settings.image, image_tokens)
    return View(picture_span(patches.soft_tokens), (patches,))


def _view_sound(source: Any, settings: Processor, access: Access, image_tokens: int | None) -> View:
    mels = sound_mels(read_sound(source, settings.sound, access=access), settings.sound)
    return View(sound_span([mel.soft_tokens for mel in mels]), tuple(mels))


def _view_video(source: Any, settings: Processor, access: Access, image_tokens: int | None) -> View:
    is_frames = isinstance(source, np.ndarray | list | tuple)
    clip = (
        make_clip(source, settings.video)
        if is_frames
        else read_video(source, settings.video, access=access)
    )
    frames = clip_patches(clip, settings.video)
    return View(clip_span(clip.stamps, [frame.soft_tokens for frame in frames]), tuple(frames))


VIEWERS: Mapping[str, Callable[[Any, Processor, Access, int | None], View]] = {
    "image": _view_image,
    "audio": _view_sound,
    "video": _view_video,
}


def look(
    model: Model, views: Sequence[View], on_media: Progress = lambda done, total: None
) -> list[View]:
    """Make features of all pieces that are none yet."""
    looked = []
    total = sum(len(each.pieces) for each in views)
    done = 0
    on_media(done, total)
    for span, pieces in views:
        features = []
        for piece in pieces:
            features.append(_features(model, piece))
            mx.eval(features[-1])  # one by one: a tower's activations need not be there for all
            done += 1
            on_media(done, total)
        looked.append(View(span, tuple(features)))
    return looked


def place(model: Model, ids: Sequence[int], looked: Sequence[View]) -> mx.array:
    """Make a prompt's input embeddings, with the features of what it shows in their places.

    Shapes: ids [L] -> [1, L, H], evaluated: prefill may run on another stream.
    Raises: RequestError when there are more features of a kind than places, or fewer.
    """
    features: dict[str, list[Any]] = {kind: [] for kind in TOWER_OF}
    for span, pieces in looked:
        features[span.kind] += pieces
    x = model.embed_media(
        mx.array([list(ids)]), features["image"], features["audio"], features["video"]
    )
    mx.eval(x)
    return x


def _features(model: Model, piece: Patches | Mel | mx.array) -> mx.array:
    if isinstance(piece, mx.array):
        return piece
    if isinstance(piece, Mel):
        return model.audio_features(mx.array(piece.frames))
    return model.image_features(mx.array(piece.patches), mx.array(piece.positions))
