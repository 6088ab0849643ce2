"""Print what widths and mixtures do to the demo's sibling with experts, class by class.

    python scripts/benchmarks/mixtures.py [--count 20]
    python scripts/benchmarks/mixtures.py --demo    the demo, which has no experts, by widths alone

The sibling (scripts/training/train_experts.py) is coded from its bf16 weights by the publisher's
table, as `quantize --bits --table clip4_100` would: every class at one width, then one class alone
at 2 bits, the head at 4, with the others at 8, then mixtures. Beside each width stands what
`quantize --fit` chooses within the same bytes. Measures are those of benchmarks/fidelity.py.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from hlwq_mlx.disk.sizes import format_bytes
from hlwq_mlx.library import DEMO
from hlwq_mlx.memory.inventory import take
from hlwq_mlx.memory.mixture import Choices, choices_of, choose, total
from hlwq_mlx.quantize import PUBLISHED, TABLES
from hlwq_mlx.source.layout import PLAIN
from hlwq_mlx.source.repository import Source
from hlwq_mlx.source.rules import Unit, unit_rule
from hlwq_mlx.write import loss
from hlwq_mlx.write.convert import convert
from hlwq_mlx.write.leftovers import KEEP
from hlwq_mlx.write.quantize import Coding, Encoder, Fidelity
from scripts.benchmarks.fidelity import (
    BASE,
    Exams,
    Row,
    Subject,
    pooled,
    print_table,
    row_of,
    unseen_texts,
)
from scripts.benchmarks.fit_table import KINDS, MIXTURES, by_class
from scripts.training import demo_exam
from scripts.training.sibling import assemble

UNIFORM = (1, 2, 3, 4, 5, 6, 8)
ALONE_BITS, OTHER_BITS = 2, 8
ENCODER = Encoder(TABLES[PUBLISHED])


def mixtures(choices: Choices) -> Iterator[tuple[str, Mapping[Unit, int]]]:
    """Yield the label and the bits of each line."""
    for bits in UNIFORM:
        uniform = by_class(choices, dict.fromkeys(KINDS, bits))
        yield f"all {bits}", uniform
        chosen = choose(choices, total(choices, uniform))
        if chosen not in (None, uniform):
            yield f"--fit in the bytes of all {bits}", chosen
    if {unit.kind for unit in choices}.isdisjoint({"experts"}):
        return
    for kind in KINDS:
        widths = by_class(choices, dict.fromkeys(KINDS, OTHER_BITS) | {kind: ALONE_BITS})
        fewest = min(bits for unit, bits in widths.items() if unit.kind == kind)  # of a head 4
        yield f"{kind} {fewest}, others {OTHER_BITS}", widths
    for mixture in MIXTURES:
        label = ", ".join(f"{kind} {bits}" for kind, bits in zip(KINDS, mixture, strict=True))
        yield label, by_class(choices, dict(zip(KINDS, mixture, strict=True)))


def measure(source: Source, work: Path, count: int) -> Iterator[Row]:
    """Code and measure every line, bf16 first."""
    exams = Exams(count, None)
    convert(source, work / BASE)
    subject = Subject(work / BASE)
    texts = unseen_texts(subject.tokenizer)
    reference = [subject.scores(ids) for ids in texts]
    questions = [conversation for conversation, _ in demo_exam.story_conversations(count)]
    wanted = subject.answers(questions, demo_exam.LONGEST_ANSWER)
    yield row_of(BASE, Fidelity(), subject, texts, reference, questions, wanted, exams)
    choices = choices_of(take(str(source.folder), PLAIN), loss.measure(source.plain, ENCODER))
    for number, (label, widths) in enumerate(tqdm(list(mixtures(choices)), desc="mixtures")):
        folder = work / str(number)
        summary = convert(source, folder, KEEP, Coding(label, unit_rule(widths), ENCODER))
        name = f"{label}: {format_bytes(total(choices, widths))}"
        fidelity = pooled(summary.plan.asked)
        subject = Subject(folder)
        yield row_of(name, fidelity, subject, texts, reference, questions, wanted, exams)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, help="where to make a temporary folder")
    parser.add_argument("--count", type=int, default=20, help="questions of each kind")
    parser.add_argument("--demo", action="store_true", help="measure the demo, not its sibling")
    arguments = parser.parse_args(argv)
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.work) as made:
        work = Path(made)
        folder = DEMO if arguments.demo else assemble(work / "source")
        rows = measure(Source(folder), work, arguments.count)
        print_table(rows, list(demo_exam.EXAMS), ENCODER)


if __name__ == "__main__":
    main()
