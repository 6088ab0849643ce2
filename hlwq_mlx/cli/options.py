"""The options that commands share: every name, default and choice once. Imports no MLX."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..dialog.readable import readable
from ..media.processor import BUDGETS
from .machines import add_split_arg

CONTEXT = 8192  # tokens of a conversation that should fit into memory
PREFILL_STEP = 512  # of engine.request; mlx-lm's 2048 would take four times the memory
DRAFTS = ("none", "lookup", "model")  # as `arguments` reads them
MEMORY = ("prefill_step_size", "kv_bits", "kv_group_size", "max_kv_size")  # of add_memory_args
LEFTOVERS = ("auto", "keep", "small")  # of write.leftovers
MODEL_NAMES = "hub id (owner/name or owner/name/PQ5), source folder, PQ folder or converted folder"


def seed(text: str) -> int:
    """Read a seed: argparse names the option when this raises."""
    value = int(text)
    if not 0 <= value < 1 << 64:
        raise argparse.ArgumentTypeError(f"needed 0 to 2**64 - 1, got {value}")
    return value


def count(text: str) -> int:
    """Read a positive number: argparse names the option when this raises."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"needed at least 1, got {value}")
    return value


def gigabytes(text: str) -> int:
    """Read the memory of a Mac, as 16 or 16GB: argparse names the option when this raises."""
    return count(text.strip().lower().removesuffix("gb").rstrip())


def json_object(text: str) -> dict[str, Any]:
    """Read a JSON object: argparse names the option when this raises."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise argparse.ArgumentTypeError(f"needed a JSON object, got {problem}") from problem
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"needed a JSON object, got {text}")
    return dict(readable(value))


def text(argument: str) -> str:
    """Read text for the model; bytes of the command line that are not text are replaced."""
    return str(readable(argument))


def add_model_args(parser: argparse.ArgumentParser) -> None:
    """Add --model, --variant, --force and --split."""
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help=f"{MODEL_NAMES}; without it the small demo model answers",
    )
    add_variant_arg(parser)
    parser.add_argument(
        "--force", action="store_true", help="load a model that does not fit this machine"
    )
    add_split_arg(parser)


def add_variant_arg(parser: argparse.ArgumentParser) -> None:
    """Add --variant."""
    parser.add_argument(
        "--variant",
        metavar="PQn",
        help="which variant of the model, as PQ5; a smaller number is smaller and coarser",
    )


def add_conversion_args(
    parser: argparse.ArgumentParser, *, source: str, output: str, is_output_needed: bool = True
) -> None:
    """Add --model, required, and --output, with mlx-lm's spellings beside ours."""
    parser.add_argument("--model", "--hf-path", required=True, metavar="SOURCE", help=source)
    parser.add_argument(
        *("--output", "--mlx-path"),
        required=is_output_needed,
        type=Path,
        metavar="DIR",
        help=output,
    )


def add_discard_args(parser: argparse.ArgumentParser) -> None:
    """Add --discard-source and --force."""
    parser.add_argument(
        "--discard-source",
        action="store_true",
        help="of a model on the hub, delete each downloaded file of weights once nothing needs it "
        "any more; a run that was stopped goes on where it was",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="begin with --discard-source even if the disk seems too small",
    )


def refuse_unused(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, names: Iterable[str], why: str
) -> None:
    """Leave with an error where an option that would be ignored is not at its default."""
    for name in names:
        if getattr(arguments, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')}: not allowed {why}")


def add_sampling_args(parser: argparse.ArgumentParser) -> None:
    """Add the sampling options; unset ones follow generation_config.json."""
    group = parser.add_argument_group("sampling (default: the checkpoint's generation_config.json)")
    group.add_argument(
        "--temp",
        "--temperature",
        type=float,
        metavar="T",
        help="temperature: 0 always takes the likeliest token, higher is more varied",
    )
    group.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="draw among the likeliest tokens that together have probability P",
    )
    group.add_argument(
        "--top-k", type=int, metavar="K", help="draw among the K likeliest tokens, 0 means all"
    )
    group.add_argument(
        "--min-p",
        type=float,
        metavar="P",
        help="leave out tokens less likely than P times the likeliest",
    )
    group.add_argument("--seed", type=seed, help="random seed: the same seed repeats an answer")


def add_answer_args(parser: argparse.ArgumentParser, *, max_tokens: int) -> None:
    """Add the options of an answer: --system-prompt, --think, --max-tokens."""
    parser.add_argument(
        "--system-prompt", type=text, metavar="TEXT", help="instructions before the prompt"
    )
    parser.add_argument(
        "--think", action="store_true", help="let the model think before it answers"
    )
    parser.add_argument(
        *("--max-tokens", "-m"),
        type=int,
        default=max_tokens,
        metavar="N",
        help=f"stop an answer after N tokens, -1 never (default: {max_tokens})",
    )


def add_memory_args(parser: argparse.ArgumentParser) -> None:
    """Add the memory options, --max-kv-size among them."""
    group = add_kv_args(parser)
    group.add_argument(
        "--max-kv-size",
        type=int,
        metavar="N",
        help="keep the first 4 tokens and the last ones, N in all, and drop those between",
    )


def add_kv_args(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add --prefill-step-size, --kv-bits and --kv-group-size."""
    group = parser.add_argument_group("memory (python -m hlwq_mlx.doctor shows what is needed)")
    group.add_argument(
        "--prefill-step-size",
        type=count,
        metavar="N",
        help="read a prompt N tokens at a time; fewer need less memory, and let others wait less "
        f"(default: {PREFILL_STEP}; where one talks alone on a GPU with memory to spare, up to "
        "2048)",
    )
    group.add_argument(
        "--kv-bits",
        type=int,
        metavar="B",
        help="4 or 8: store keys and values in so many bits, in less memory and less exactly",
    )
    group.add_argument(
        "--kv-group-size",
        type=int,
        default=64,
        metavar="N",
        help="with --kv-bits, how many numbers share a scale (default: 64)",
    )
    parser.set_defaults(max_kv_size=None)
    return group


def add_draft_args(parser: argparse.ArgumentParser) -> None:
    """Add --draft and --draft-model."""
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--draft",
        choices=DRAFTS,
        help="guess the next tokens and check several in one pass, for the same answer sooner: "
        "lookup guesses what followed the same words before, as in quoting and editing; model "
        "lets a drafter guess (default: model where there is a drafter, else none)",
    )
    group.add_argument(
        "--draft-model",
        metavar="SOURCE",
        help="the drafter: hub id or folder of one that was made for the model (default: the "
        "folder drafter/ within the model's)",
    )


class _AppendMedium(argparse.Action):
    """Collects what --image, --audio and --video name into one list, in the order given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        parts = [media_part(str(self.const), source) for source in values]
        namespace.media = [*namespace.media, *parts]


def add_media_args(parser: argparse.ArgumentParser, *, message: str) -> None:
    """Add the media of a prompt: --image, --audio, --video, --image-tokens, --allow-http.

    `message` names, for --help, the message that they become part of. The parsed `media` are
    content parts.
    """
    group = parser.add_argument_group(
        "media",
        f"They come before the text of {message}, in the order given; each can be repeated.\n"
        "FILE is a path or, with --allow-http, a web address.",
    )
    for kind, what in (
        ("image", "show a picture"),
        ("audio", "play a sound"),
        ("video", "show frames of a video, without its sound"),
    ):
        group.add_argument(
            f"--{kind}",
            nargs="+",
            dest="media",
            action=_AppendMedium,
            const=kind,
            metavar="FILE",
            help=what,
        )
    parser.set_defaults(media=[])
    group.add_argument(
        "--image-tokens",
        type=int,
        choices=BUDGETS,
        metavar="N",
        help=f"how many tokens a picture may take: {', '.join(map(str, BUDGETS))} "
        "(default: the model's; more show finer detail and take longer)",
    )
    group.add_argument("--allow-http", action="store_true", help="allow downloads of media")


def media_part(kind: str, source: str) -> dict[str, Any]:
    """Return the content part of a message for a file's name."""
    return {"type": kind, "path": source}
