"""How much room for conversations a group has: as much as its fullest machine lets it have."""

from collections.abc import Iterator

from ..gemma4.config import Gemma4Config, TextConfig
from ..memory.need import Settings, Space
from .parts import grain_of, layers_part
from .plan import LAYERS, Plan
from .shares import Split


def space(plan: Plan, args: Gemma4Config, settings: Settings, item_bytes: int) -> Space:
    """Return the room in bytes of rank 0, which alone counts what is kept.

    Some layers remember every token and some a window, so that what another machine keeps beside a
    byte of rank 0 depends on the length; it is taken where that is most.
    """
    own, *others = (Space.of(0, each, settings, item_bytes) for each in parts(plan, args))
    room = [
        max(0.0, limit - held + kept)
        for limit, held, kept in zip(plan.limits, plan.held, plan.kept, strict=True)
    ]
    longest = args.text_config.max_position_embeddings
    lengths = [*(1 << at for at in range(longest.bit_length())), longest]
    most = room[0]
    for spare, other in zip(room[1:], others, strict=True):
        beside = max(other.bytes_of(length) / own.bytes_of(length) for length in lengths)
        most = min(most, spare / beside)
    return Space(int(most), own.bytes_of)


def parts(plan: Plan, args: Gemma4Config) -> Iterator[TextConfig]:
    """Yield each machine's part of the model, as a smaller one."""
    for rank, layers in enumerate(plan.layers):
        if plan.split == LAYERS:
            yield layers_part(args, layers).args.text_config
        else:
            yield Split(args.text_config, len(plan.layers), rank, grain_of(args)).narrow()
