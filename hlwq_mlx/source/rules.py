"""Which tensors are coded, and at how many bits: rules over names and shapes.

The publisher's two rules (spec: hlwq_format §3.4, §3.5) and rules that a user spells as
`mlp=2,attention=4`.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..errors import RequestError

Rule = Callable[[str, tuple[int, ...]], int | None]
"""From a tensor's name and shape to its bits, or None for a tensor that stays as it is."""

VARIANTS = ("PQ1", "PQ2", "PQ3", "PQ4", "PQ5", "PQ6", "PQ8", "PQ2-Mixed")
CLASSES = {
    "mlp": re.compile(r"\.layers\.\d+\.mlp\.(gate|up|down)_proj\.weight$"),
    "attention": re.compile(r"\.layers\.\d+\.self_attn\.[qkvo]_proj\.weight$"),
    "experts": re.compile(r"\.layers\.\d+\.experts\.(gate_up|down)_proj(\.weight)?$"),
    "router": re.compile(r"\.layers\.\d+\.router\.proj\.weight$"),
    "embedding": re.compile(r"\.embed_tokens\.weight$"),
    "ple": re.compile(
        r"\.per_layer_model_projection\.weight$"
        r"|\.layers\.\d+\.per_layer_(input_gate|projection)\.weight$"
    ),
    "audio": re.compile(r"\.audio_tower\.|\.embed_audio\."),
    "vision": re.compile(r"\.vision_tower\.|\.embed_vision\."),
}
TOWERS = ("audio", "vision")
_LEFT_OUT = ("norm", "embed", "gate", "per_layer", "vision", "router")
_PLACE = re.compile(r"\.layers\.(\d+)\.(?:experts\.(gate_up|down)_proj)?")
LEAST_ROUTER_BITS = 8  # what it gets wrong sends a token to other experts


def variant_rule(variant: str) -> tuple[str, Rule]:
    """Return a published variant's name as it is spelled, and its rule.

    Raises: RequestError for a variant that was never published.
    """
    name = {name.lower(): name for name in VARIANTS}.get(variant.lower())
    if name is None:
        raise RequestError(
            f"[variant] needed one of {', '.join(VARIANTS)}, got {variant}. Choose one of these."
        )
    if name == "PQ2-Mixed":
        return name, class_rule({"mlp": 2, "experts": 2, "attention": 4})
    return name, _pure_rule(int(name.removeprefix("PQ")))


def _pure_rule(bits: int) -> Rule:
    def rule(name: str, shape: tuple[int, ...]) -> int | None:
        is_coded = len(shape) == 2 and not any(part in name for part in _LEFT_OUT)
        return bits if is_coded or matrix_class(name, shape) == "experts" else None

    return rule


def parse_bits(text: str) -> dict[str, int]:
    """Read `class=bits,class=bits`.

    Raises: RequestError for an unknown class, one named twice, a width outside 1..8 or a router's
    below 8.
    """
    widths: dict[str, int] = {}
    for part in text.split(","):
        name, _, bits = part.strip().partition("=")
        if name not in CLASSES or not bits.isdecimal() or not 1 <= int(bits) <= 8:
            raise RequestError(
                f"[bits] needed class=1..8 with a class of {', '.join(CLASSES)}, got {part!r}. "
                "Write it as mlp=2,attention=4."
            )
        if name in widths:
            raise RequestError(
                f"[bits] needed each class once, got {name} twice. Write it as mlp=2,attention=4."
            )
        widths[name] = int(bits)
    if widths.get("router", LEAST_ROUTER_BITS) < LEAST_ROUTER_BITS:
        raise RequestError(
            f"[bits] needed {LEAST_ROUTER_BITS} bits or none for router, got {widths['router']}. "
            "It is small, and chooses the experts of every token."
        )
    return widths


def require_classes(widths: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a model has matrices of every class that is named.

    Raises: RequestError.
    """
    found = {matrix_class(*each) for each in shapes.items()}
    missing = [kind for kind in widths if kind not in found]
    if missing:
        raise RequestError(
            f"[bits] needed classes that the model has, got {', '.join(missing)}. It has "
            f"{', '.join(kind for kind in CLASSES if kind in found) or 'no matrix'}."
        )


def class_of(name: str) -> str | None:
    """Return which class of matrices a tensor belongs to."""
    for tower in TOWERS:  # a tower's layers look like the text model's
        if CLASSES[tower].search(name):
            return tower
    return next((kind for kind, pattern in CLASSES.items() if pattern.search(name)), None)


def matrix_class(name: str, shape: tuple[int, ...]) -> str | None:
    """Return the class of a tensor that is a matrix or, of experts, a stack of matrices."""
    kind = class_of(name)
    return kind if len(shape) == (3 if kind == "experts" else 2) else None


class Unit(NamedTuple):
    """Matrices of the text model that have bits of their own: those of a class in a layer.

    What is multiplied as one matrix, as q, k and v are, is not told apart; `part` is which of the
    two stacks of experts, `layer` -1 for what lies outside of layers.
    """

    kind: str
    layer: int = -1
    part: str = ""


def unit_of(name: str, shape: tuple[int, ...]) -> Unit | None:
    """Return which unit of the text model a tensor belongs to."""
    kind = matrix_class(name, shape)
    if kind is None or kind in TOWERS:
        return None
    place = _PLACE.search(name)
    return Unit(kind) if place is None else Unit(kind, int(place[1]), place[2] or "")


def unit_rule(widths: Mapping[Unit, int]) -> Rule:
    """Return the rule that codes some units."""

    def rule(name: str, shape: tuple[int, ...]) -> int | None:
        unit = unit_of(name, shape)
        return None if unit is None else widths.get(unit)

    return rule


def class_rule(widths: dict[str, int]) -> Rule:
    """Return the rule that codes the matrices of some classes."""

    def rule(name: str, shape: tuple[int, ...]) -> int | None:
        kind = matrix_class(name, shape)
        return None if kind is None else widths.get(kind)

    return rule
