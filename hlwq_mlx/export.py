"""`python -m hlwq_mlx.export`: write a model for programs that cannot read HLWQ."""

import argparse
import sys
from collections.abc import Sequence

from . import cli

BITS = (4, 6, 8)


def make_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(prog=cli.program("export"), description=__doc__)
    cli.add_conversion_args(
        parser,
        source="hub id (owner/name or owner/name/PQ5), repository folder or PQ folder; "
        "not a folder that convert made",
        output="the folder to make; must not exist",
    )
    parser.add_argument("--variant", metavar="PQn", help="which variant to export, as PQ5")
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument(
        "--affine",
        type=int,
        choices=BITS,
        help="the text model in MLX's own quantization, for mlx-lm, LM Studio and others; "
        "per-layer embeddings have 8 bits at least",
    )
    form.add_argument(
        "--bf16", action="store_true", help="all tensors decoded, in the layout of transformers"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, export, print what was written."""
    arguments = make_parser().parse_args(argv)
    from .disk import atomic
    from .source.locate import find
    from .source.repository import Source
    from .write import export

    atomic.require_new(arguments.output)
    opened = Source(*find(arguments.model, arguments.variant))
    if arguments.bf16:
        exported = export.export_bf16(opened, arguments.output)
    else:
        exported = export.export_affine(opened, arguments.output, arguments.affine)
    for line in exported.lines():
        cli.note(line)
    cli.result(str(arguments.output))


if __name__ == "__main__":
    sys.exit(cli.run(main))
