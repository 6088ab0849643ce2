"""Draw the README's pictures from the tables in scripts/README.md, light and dark.

    python scripts/benchmarks/pictures.py [--output scripts/pictures]

Needs matplotlib: pip install -e '.[pictures]'. Nothing is computed here that a table does not say.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

TABLES = Path(__file__).parents[1] / "README.md"
OUTPUT = Path(__file__).parents[1] / "pictures"
INCHES = (8.6, 3.7)
DPI = 120
LEAST_KL = 1e-5  # the table's last digit
RIGHT, ABOVE, BELOW, LEFT = (22, -4), (0, 9), (0, -18), (-36, -12)
# Where a label stands beside its point: the centre of the one from the other, in points.
BESIDE = {
    **dict.fromkeys(("PQ4", "PQ5", "PQ6"), (20, 3)),
    **dict.fromkeys(("PQ8", "PQ2-Mixed", "PQ2, auto"), ABOVE),
    "PQ5, auto": (33, 8),
    "PQ2, small": BELOW,
    "PQ5, small": LEFT,
}
CONTEXT_TICKS = (0, 32, 64, 96, 128)

Row = dict[str, str]


class Theme(NamedTuple):
    """Colors of a picture: what is written, lines behind it, the page, and two of what is drawn."""

    ink: str
    grid: str
    page: str
    first: str
    second: str


THEMES = {
    "light": Theme("#1f2328", "#d1d9e0", "#ffffff", "#0969da", "#bc4c00"),
    "dark": Theme("#f0f6fc", "#3d444d", "#0d1117", "#4493f8", "#f0883e"),
}


def table_under(heading: str, text: str, number: int = 0) -> list[Row]:
    """Return one of the Markdown tables below a heading, a row a dict of its cells."""
    tables: list[list[str]] = [[]]
    for line in text[text.index(heading) :].splitlines():
        if line.startswith("|"):
            tables[-1].append(line)
        elif tables[-1]:
            tables.append([])
    names, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in tables[number]
    )
    return [dict(zip(names, each, strict=True)) for each in rows]


def number(cell: str) -> float:
    """Read a cell such as `4.98 GB` or `40k`; 0 for one without a number."""
    digits = cell.split()[0].removesuffix("k").removesuffix(",")
    return float(digits) if digits[0].isdigit() else 0.0


def label_rows(axes: Any, names: Sequence[str], theme: Theme) -> None:
    """Write the variants beside horizontal bars, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="x", color=theme.grid, linewidth=0.6)


def bars_with_more(axes: Any, less: list[float], more: list[float], color: str) -> None:
    """Draw bars of `less`, and paler what `more` adds to them."""
    places = range(len(less))
    added = [b - a for a, b in zip(less, more, strict=True)]
    axes.barh(places, less, 0.62, color=color)
    axes.barh(places, added, 0.62, left=less, color=color, alpha=0.45)


def draw_memory(figure: Any, text: str, theme: Theme) -> None:
    """Draw what each variant needs, and the longest context on a Mac of 8 GB."""
    rows = table_under("## What fits on which Mac", text)
    names = [row["variant"] for row in rows]
    needs, contexts = figure.subplots(1, 2, sharey=True)
    label_rows(needs, names, theme)
    alone = [number(row["memory, text alone"]) for row in rows]
    whole = [number(row["memory, pictures and sound too"]) for row in rows]
    bars_with_more(needs, alone, whole, theme.first)
    for place, size in enumerate(whole):
        needs.annotate(f"{alone[place]:.2f} / {size:.2f}", (size + 0.15, place), va="center")
    needs.set_xlim(0, max(whole) * 1.35)
    needs.set_title("Memory for 8,192 tokens, GB\ntext alone / pictures and sound too")

    column = "longest context, Mac of {}, macOS {}"
    older, newer = (
        [number(row[column.format("8 GB", release)]) for row in rows] for release in (15, 26)
    )
    contexts.grid(axis="x", color=theme.grid, linewidth=0.6)
    bars_with_more(contexts, older, newer, theme.second)
    for place, (before, since) in enumerate(zip(older, newer, strict=True)):
        said = f"{before:.0f}k" if before == since else f"{before:.0f}k / {since:.0f}k"
        contexts.annotate(said if since else "does not fit", (since + 2, place), va="center")
    most = max(newer)
    contexts.set_xlim(0, most * 1.45)
    contexts.set_xticks(CONTEXT_TICKS, [f"{ticks}k" for ticks in CONTEXT_TICKS])
    contexts.tick_params(axis="y", length=0)
    roomy = [row[column.format("16 GB", 15)] for row in rows]
    rest = f"on 16 GB every variant reaches {most:.0f}k"
    if any(number(cell) < most for cell in roomy):
        rest = f"on 16 GB: {', '.join(roomy)}"
    contexts.set_title(f"Longest context on a Mac of 8 GB, macOS 15 / 26\n{rest}")


def write_beside(axes: Any, name: str, place: tuple[float, float]) -> None:
    """Label a point."""
    shift = BESIDE.get(name, RIGHT)
    axes.annotate(name, place, shift, textcoords="offset points", ha="center")


def draw_quality(figure: Any, text: str, theme: Theme) -> None:
    """Draw the demo's divergence from bf16 against the bytes that E4B reads a token."""
    sizes = {row["variant"]: row for row in table_under("## What `convert --leftovers`", text)}
    kept = table_under("## How good the demo is", text)
    coded = table_under("## What `convert --leftovers`", text, 1)
    axes = figure.subplots()

    def point(row: Row, column: str) -> tuple[float, float]:
        variant = row["variant"].partition(",")[0]
        return float(sizes[variant][column]), max(float(row["KL to bf16"]), LEAST_KL)

    points = {r["variant"]: point(r, "GB a token, keep") for r in kept if r["variant"] in sizes}
    line = [place for name, place in points.items() if name.removeprefix("PQ").isdigit()]
    axes.plot(*zip(*line, strict=True), "-", color=theme.first, linewidth=1.5)
    axes.plot(*zip(*points.values(), strict=True), "o", color=theme.first)
    axes.plot([], [], "o-", color=theme.first, label="leftovers kept in 16 bits")
    for name, place in points.items():
        write_beside(axes, name, place)
    for variant in ("PQ2", "PQ5"):
        steps = [points[variant]]
        for choice in ("auto", "small"):
            (row,) = (row for row in coded if row["variant"] == f"{variant}, {choice}")
            steps.append(point(row, choice))
            write_beside(axes, row["variant"], steps[-1])
        axes.plot(*zip(*steps, strict=True), ":", color=theme.second, linewidth=1.5)
        axes.plot(*zip(*steps[1:], strict=True), "s", color=theme.second)
    axes.plot([], [], "s:", color=theme.second, label="leftovers coded: auto, small")
    axes.set_yscale("log")
    axes.set_ylim(LEAST_KL / 2, 2)
    axes.margins(x=0.08)
    axes.grid(color=theme.grid, linewidth=0.6)
    axes.set_xlabel("GB of weights that a token of E4B reads (computed)")
    axes.set_ylabel("KL divergence from bf16, a token")
    axes.set_title("What the codes cost the demo model, lower is better, and what a token reads")
    axes.legend(frameon=False, loc="lower left")


PICTURES: dict[str, Callable[[Any, str, Theme], None]] = {
    "memory": draw_memory,
    "quality": draw_quality,
}


def main() -> None:
    """Parse, draw, print the files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR", help="where they go")
    arguments = parser.parse_args()
    try:
        import matplotlib
    except ImportError:
        parser.exit(2, "error: needed matplotlib, got none. Run: pip install -e '.[pictures]'\n")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    arguments.output.mkdir(exist_ok=True)
    text = TABLES.read_text(encoding="utf-8")
    colors = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
    for look, theme in THEMES.items():
        pages = dict.fromkeys(("figure.facecolor", "axes.facecolor"), theme.page)
        style = {**dict.fromkeys(colors, theme.ink), **pages, "axes.edgecolor": theme.grid}
        with matplotlib.rc_context({**style, "axes.axisbelow": True, "axes.titlesize": 10}):
            for name, draw in PICTURES.items():
                figure = pyplot.figure(figsize=INCHES, dpi=DPI, layout="constrained")
                draw(figure, text, theme)
                path = arguments.output / f"{name}-{look}.png"
                figure.canvas.draw()
                drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
                drawn.quantize(64).save(path, optimize=True)  # a fifth of the bytes
                pyplot.close(figure)
                print(path)


if __name__ == "__main__":
    main()
