"""Print what formats lose on trained weights at the bytes they take: ours beside MLX's and GGUF's.

    python scripts/benchmarks/quality.py [--models demo MiniLM] [--formats PQ5 Q5_K]

The matrices of attention and MLP are coded in every format, decoded, and put back into the model in
float32; all else stays as it is. A table for each model: bits a weight, every byte counted; signal
to noise of the weights, pooled; and what the model then does. "Saves" is how many bits a weight
fewer our codes need for the same result, on the line through our own widths: as they were
published, and as `quantize --table converged --refit` makes them. Then what that says of the model
card's claims, and what becomes of a matrix with a strong mean. GGUF's formats need llama-cpp-python
and gguf (pip install -e '.[peers]'), MiniLM its package; what is not installed is left out, and
said.
"""

import argparse
import json
import math
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from numpy.typing import NDArray
from tqdm import tqdm

from hlwq_mlx import library
from hlwq_mlx.source import rules
from hlwq_mlx.source.repository import Source
from hlwq_mlx.write.convert import convert
from scripts.benchmarks import fidelity, formats, minilm
from scripts.benchmarks.formats import BEST, PUBLISHED, Format, Place, Weight
from scripts.training import demo_exam, tinyworld

CURVES = (PUBLISHED, BEST)
CLAIMS = {"PQ3": "Q3_K_M", "PQ5": "Q5_K_M"}
STRONG_MEAN_BITS = 5
STRONG_MEAN = (f"PQ5, {PUBLISHED}", f"PQ5, {BEST}", "MLX affine 5, groups of 64", "Q5_K")
LEAST_LOSS = 3e-5  # below it is what float32 rounds
STORIES = 3
TEXTS = 20


class Subject(Protocol):
    """A model whose matrices can be replaced; `loss` names the measure of what it does."""

    name: str
    loss: str
    columns: tuple[str, ...]

    def matrices(self) -> dict[str, tuple[Place, Weight]]:
        """Return what is coded."""

    def measure(self, weights: dict[str, Weight]) -> tuple[float, list[str]]:
        """Put other matrices in; return the loss, and cells for the columns."""


class Sentences:
    """MiniLM, and how far its vectors of sentences turn."""

    name = "MiniLM"
    loss = "1 - cos of sentences"
    columns = (loss,)

    def __init__(self, path: Path) -> None:
        self._model = minilm.MiniLM(path)
        self._sentences = sentences()
        self._wanted = self._vectors()

    def matrices(self) -> dict[str, tuple[Place, Weight]]:
        places = self._model.matrices()
        return {name: (place, self._model.weights[name]) for name, place in places.items()}

    def measure(self, weights: dict[str, Weight]) -> tuple[float, list[str]]:
        self._model.weights |= weights
        turned = float(1 - (self._vectors() * self._wanted).sum(axis=1).mean())
        return turned, [f"{turned:.2e}"]

    def _vectors(self) -> NDArray[np.float64]:
        return np.array([self._model.embed(each) for each in self._sentences], dtype=np.float64)


class Demo:
    """The demo, how far its next words are from bf16's, and an exam that is easily failed."""

    name = "demo"
    loss = "KL to bf16"
    columns = ("perplexity", loss, "thoughts")

    def __init__(self, questions: int) -> None:
        with tempfile.TemporaryDirectory() as work:
            convert(Source(library.DEMO), Path(work) / "bf16")
            self._subject = fidelity.Subject(Path(work) / "bf16")
        self._questions = questions
        self._texts = fidelity.unseen_texts(self._subject.tokenizer)[:TEXTS]
        self._reference = [self._subject.scores(ids) for ids in self._texts]

    def matrices(self) -> dict[str, tuple[Place, Weight]]:
        model = self._subject.model
        layers = model.args.text_config.num_hidden_layers
        found = {}
        for name, array in tree_flatten(model.parameters()):
            if rules.matrix_class(name, array.shape) in ("mlp", "attention"):
                layer = name.partition(".layers.")[2].partition(".")[0]
                kind = name.removesuffix("_proj.weight").rpartition(".")[2]
                found[name] = Place(kind, int(layer), layers), np.array(array.astype(mx.float32))
        return found

    def measure(self, weights: dict[str, Weight]) -> tuple[float, list[str]]:
        arrays = [(name, mx.array(weight)) for name, weight in weights.items()]
        self._subject.model.update(tree_unflatten(arrays))
        perplexity, divergence = fidelity.compare(self._subject, self._texts, self._reference)
        right = demo_exam.EXAMS["thoughts"](self._subject.answerer, self._questions)
        exam = fidelity.fraction(right, self._questions)
        return divergence, [f"{perplexity:.3f}", f"{divergence:.5f}", exam]


class Row(NamedTuple):
    """What a format takes and loses."""

    format: Format
    bits: float
    noise: float  # decibels of signal to noise
    loss: float
    cells: list[str]


def sentences() -> list[str]:
    """Return sentences that never change: of the demo's stories and of the licence."""
    rng = random.Random("sentences")
    told = [each for _ in range(STORIES) for each in tinyworld.make_story(rng).sentences]
    licence = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    return told + " ".join(licence.split()).split(". ")[: len(told)]


def measure(
    subject: Subject, matrices: Mapping[str, tuple[Place, Weight]], chosen: Sequence[Format]
) -> Iterator[Row]:
    """Code a model in every format; what it has afterwards is the last one's."""
    count = sum(weight.size for _, weight in matrices.values())
    signal = sum(float(np.vdot(weight, weight)) for _, weight in matrices.values())
    for each in tqdm(chosen, desc=subject.name):
        coded = {name: each.code(place, weight) for name, (place, weight) in matrices.items()}
        lost = sum(
            float(np.square(coded[name].weight - weight, dtype=np.float64).sum())
            for name, (_, weight) in matrices.items()
        )
        loss, cells = subject.measure({name: part.weight for name, part in coded.items()})
        nbytes = sum(part.nbytes for part in coded.values())
        yield Row(each, 8 * nbytes / count, 10 * math.log10(signal / lost), loss, cells)


def bits_needed(rows: Sequence[Row], curve: str, value: float, of: Callable[[Row], float]) -> float:
    """Return the bits a weight at which our codes are as good; NaN beyond our widths.

    `of` is what is compared: less of it is better, and it falls with every bit.
    """
    points = [(row.bits, of(row)) for row in rows if row.format.curve == curve]
    for (bits, worse), (more, better) in pairwise(points):
        if better <= value <= worse:
            return bits + (more - bits) * (worse - value) / (worse - better)
    return math.nan


def noise(row: Row) -> float:
    """Return the error of the weights, in decibels."""
    return -row.noise


def loss(row: Row) -> float:
    """Return the model's loss as a logarithm."""
    return math.log(max(row.loss, LEAST_LOSS))


def savings(rows: Sequence[Row], row: Row) -> list[float]:
    """Return the bits that we save, by the weights' error and by the loss, for each of CURVES."""
    found = [row.bits - bits_needed(rows, curve, noise(row), noise) for curve in CURVES]
    if row.loss <= LEAST_LOSS:
        return [*found, *(math.nan for _ in CURVES)]
    return found + [row.bits - bits_needed(rows, curve, loss(row), loss) for curve in CURVES]


def signed(bits: float) -> str:
    """Write what is saved."""
    return "–" if math.isnan(bits) else f"{bits:+.2f}"


def print_table(subject: Subject, rows: Sequence[Row]) -> None:
    """Print a model's formats as Markdown, the smallest first."""
    saves = [f"{what} saves, {curve}" for what in ("error:", "loss:") for curve in CURVES]
    head = ("format", "bits a weight", "SNR, dB", *subject.columns, *saves)
    print(f"\n{subject.name}; loss is {subject.loss}.\n")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in sorted(rows, key=lambda row: (row.bits, row.noise)):
        saved = [""] * len(saves)
        if row.format.curve is None:
            saved = [signed(bits) for bits in savings(rows, row)]
        cells = (row.format.name, f"{row.bits:.3f}", f"{row.noise:.2f}", *row.cells, *saved)
        print(f"| {' | '.join(cells)} |")


def print_claims(subject: Subject, rows: Sequence[Row]) -> None:
    """Print where the card is right that PQn is better than a mixture at the same size."""
    named = {row.format.name: row for row in rows}
    for variant, mixture in CLAIMS.items():
        if mixture not in named or f"{variant}, {BEST}" not in named:
            continue
        saved = savings(rows, named[mixture])
        verdicts = [
            f"{curve}: by error {verdict(error)}, by loss {verdict(lost)}"
            for curve, error, lost in zip(CURVES, saved[:2], saved[2:], strict=True)
        ]
        print(f"\n{subject.name}, {variant} > {mixture} at the same size: {'; '.join(verdicts)}.")


def print_strong_mean(name: str, place: Place, weight: Weight, chosen: Sequence[Format]) -> None:
    """Print what formats lose on a matrix when its mean is moved by one deviation.

    The first coordinate of a rotated block is then far beyond the tables.
    """
    shifted = weight + weight.std()
    print(f"\n{name}'s first matrix, and the same with one deviation added to it all.\n")
    print("| format | bits a weight | SNR, dB | with a strong mean |\n|---|---|---|---|")
    for each in chosen:
        found = [signal_to_noise(each.code(place, one).weight, one) for one in (weight, shifted)]
        bits = 8 * each.code(place, weight).nbytes / weight.size
        print(f"| {each.name} | {bits:.3f} | {found[0]:.2f} | {found[1]:.2f} |")


def signal_to_noise(coded: Weight, weight: Weight) -> float:
    """Return the signal over the noise in decibels."""
    lost = np.square(coded - weight, dtype=np.float64).sum()
    return 10 * math.log10(float(np.square(weight, dtype=np.float64).sum() / lost))


def verdict(saved: float) -> str:
    """Return whether we need fewer bits than another format."""
    if math.isnan(saved):
        return "not told"
    return f"{'holds' if saved > 0 else 'does not hold'} ({signed(saved)} bits)"


def subjects(names: Sequence[str], questions: int) -> Iterator[Subject]:
    """Make the models that are installed; say which are not."""
    if "demo" in names:
        yield Demo(questions)
    if "MiniLM" in names:
        path = minilm.folder()
        if path is None:
            print(f"MiniLM is not installed: {minilm.INSTALL}", file=sys.stderr)
        else:
            yield Sentences(path)


def plain(row: Row) -> dict[str, Any]:
    """Return a row for JSON."""
    return {"format": row.format.name, "bits": row.bits, "snr_db": row.noise, "loss": row.loss}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = ("demo", "MiniLM")
    parser.add_argument("--models", nargs="+", choices=names, default=names, help="default: both")
    parser.add_argument(
        "--formats", nargs="+", metavar="NAME", help="those whose names begin so (default: all)"
    )
    parser.add_argument("--questions", type=int, default=25, help="of the demo's exam")
    arguments = parser.parse_args(argv)
    if not formats.has_ggml():
        print("GGUF's formats are left out: pip install -e '.[peers]'", file=sys.stderr)
    starts = tuple(arguments.formats or ("",))
    chosen = [each for each in formats.formats() if each.name.startswith(starts)]
    found = {}
    for subject in subjects(arguments.models, arguments.questions):
        matrices = subject.matrices()
        rows = list(measure(subject, matrices, chosen))
        print_table(subject, rows)
        print_claims(subject, rows)
        few = [each for each in chosen if each.name in STRONG_MEAN]
        few += formats.with_means(STRONG_MEAN_BITS)
        print_strong_mean(subject.name, *next(iter(matrices.values())), few)
        found[subject.name] = [plain(row) for row in rows]
    print(json.dumps({"quality": found}))


if __name__ == "__main__":
    main()
