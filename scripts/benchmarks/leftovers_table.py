"""Print what `convert --leftovers` makes of every published variant of E4B: widths and bytes.

    python scripts/benchmarks/leftovers_table.py

Computed from tables and shapes alone: the rule is leftovers.width's, the shapes are E4B's.
"""

import math
from typing import Any

from hlwq_mlx.quant.tables import centroids, error_energy
from hlwq_mlx.source import rules
from hlwq_mlx.write import leftovers
from scripts.benchmarks import launches, m1

# One tensor of each class, whose width stands for all of them.
COLUMNS = {"gate_proj": "mlp", "embedding": "embedding", "per-layer": "ple"}
HEAD = (
    *("variant", "own error", "auto: gate_proj, embedding, per-layer", "small: the same"),
    *("GB a token, keep", "auto", "small"),
)

Shapes = dict[str, tuple[int, ...]]


def own_energy(rule: rules.Rule, shapes: Shapes) -> float:
    """Return the error energy of what a publisher's rule codes, as `leftovers.own_energy` does."""
    coded = {name: bits for name, shape in shapes.items() if (bits := rule(name, shape))}
    lost = sum(
        math.prod(shapes[name]) * error_energy(centroids("clip4_100", bits))
        for name, bits in coded.items()
    )
    return lost / sum(math.prod(shapes[name]) for name in coded)


def with_leftovers(rule: rules.Rule, choice: str, own: float) -> rules.Rule:
    """Return a publisher's rule, with leftovers coded."""

    def wider(name: str, shape: tuple[int, ...]) -> int | None:
        kind = rules.class_of(name) if len(shape) == 2 else None
        return rule(name, shape) or (kind and leftovers.width(choice, kind, own)) or None

    return wider


def widths(rule: rules.Rule, choice: str, own: float) -> str:
    """Return the widths that leftovers get, 16 where nothing is done; – where none are left."""
    is_gate_left = rule("model.layers.0.mlp.gate_proj.weight", (1, 1)) is None
    cells = [str(leftovers.width(choice, kind, own) or 16) for kind in COLUMNS.values()]
    return ", ".join(cells if is_gate_left else ["–", *cells[1:]])


def rows() -> list[list[Any]]:
    """Make the table."""
    shapes = launches.plain_shapes(launches.e4b_config())
    found = []
    for variant in rules.VARIANTS:
        name, rule = rules.variant_rule(variant)
        own = own_energy(rule, shapes)
        sizes = [
            m1.weight_bytes(m1.hlwq(with_leftovers(rule, choice, own)), shapes) / 1e9
            for choice in (leftovers.KEEP, leftovers.AUTO, leftovers.SMALL)
        ]
        chosen = [widths(rule, choice, own) for choice in (leftovers.AUTO, leftovers.SMALL)]
        found.append([name, f"{own**0.5:.4f}", *chosen, *(f"{size:.2f}" for size in sizes)])
    return found


def main() -> None:
    """Print the table as Markdown."""
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for row in rows():
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
