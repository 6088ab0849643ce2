"""What the commands share: argument groups, printing a stream, errors and progress.

Results go to stdout; progress, logs and errors to stderr. The only module, with the commands, that
prints.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import HLWQError
from .media.processor import BUDGETS

if TYPE_CHECKING:
    from .fit import Settings

CONTEXT = 8192  # tokens that a conversation should have room for
PREFILL_STEP = 512  # of engine.decode; mlx-lm's 2048 would take four times the memory
PATIENCE_S = 1.0
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
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


def json_object(text: str) -> dict[str, Any]:
    """Read a JSON object: argparse names the option when this raises."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as problem:
        raise argparse.ArgumentTypeError(f"needed a JSON object, got {problem}") from problem
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"needed a JSON object, got {text}")
    return value


def add_model_args(parser: argparse.ArgumentParser) -> None:
    """Add --model, --variant and --force."""
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help=f"{MODEL_NAMES}; without it the small demo model answers",
    )
    add_variant_arg(parser)
    parser.add_argument(
        "--force", action="store_true", help="load a model that this machine has no room for"
    )


def add_variant_arg(parser: argparse.ArgumentParser) -> None:
    """Add --variant."""
    parser.add_argument(
        "--variant",
        metavar="PQn",
        help="which variant of the model, as PQ5; a smaller number is smaller and coarser",
    )


def add_conversion_args(parser: argparse.ArgumentParser, *, source: str, output: str) -> None:
    """Add --model and --output, required, with mlx-lm's spellings beside ours."""
    parser.add_argument("--model", "--hf-path", required=True, metavar="SOURCE", help=source)
    parser.add_argument(
        "--output", "--mlx-path", required=True, type=Path, metavar="DIR", help=output
    )


def add_sampling_args(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the next token; unset ones follow generation_config.json."""
    group = parser.add_argument_group("sampling (default: the checkpoint's generation_config.json)")
    group.add_argument(
        "--temp",
        "--temperature",
        type=float,
        metavar="T",
        help="0 always takes the likeliest token, more is more varied",
    )
    group.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="draw among the likeliest that have P of the probability",
    )
    group.add_argument(
        "--top-k", type=int, metavar="K", help="draw among the K likeliest, 0 means all"
    )
    group.add_argument(
        "--min-p",
        type=float,
        metavar="P",
        help="leave out what has less than P of the likeliest's probability",
    )
    group.add_argument("--seed", type=seed, help="a number that repeats a drawn answer")


def add_answer_args(parser: argparse.ArgumentParser, *, max_tokens: int) -> None:
    """Add what shapes an answer: --system-prompt, --think, --max-tokens."""
    parser.add_argument("--system-prompt", metavar="TEXT", help="instructions before the prompt")
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
    """Add what bounds memory, --max-kv-size too."""
    group = add_kv_args(parser)
    group.add_argument(
        "--max-kv-size",
        type=int,
        metavar="N",
        help="remember the first 4 tokens and the last ones, N in all, and forget those between",
    )


def add_kv_args(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add --prefill-step-size, --kv-bits and --kv-group-size."""
    group = parser.add_argument_group("memory (python -m hlwq_mlx.doctor says what is needed)")
    group.add_argument(
        "--prefill-step-size",
        type=count,
        default=PREFILL_STEP,
        metavar="N",
        help=f"read a prompt N tokens at a time; fewer need less memory (default: {PREFILL_STEP})",
    )
    group.add_argument(
        "--kv-bits",
        type=int,
        metavar="B",
        help="4 or 8: remember a long context in less memory, less exactly",
    )
    group.add_argument(
        "--kv-group-size",
        type=int,
        default=64,
        metavar="N",
        help="with --kv-bits, values that share a scale (default: 64)",
    )
    parser.set_defaults(max_kv_size=None)
    return group


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
    """Add what a prompt shows: --image, --audio, --video, --image-tokens, --allow-http.

    `message` says which message they become part of; they stand in `media`, as content parts.
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
    group.add_argument("--allow-http", action="store_true", help="let media be downloaded")


def media_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the media arguments mean to `library.stream_generate`, with progress shown."""
    return {
        "image_tokens": arguments.image_tokens,
        "http": arguments.allow_http,
        "on_media": progress("look and listen", "media"),
        "on_prefill": progress("read the prompt", "tokens"),
    }


def media_part(kind: str, source: str) -> dict[str, Any]:
    """Make a message's content part of a file's name."""
    return {"type": kind, "path": source}


def content_of(media: Sequence[dict[str, Any]], text: str) -> str | list[dict[str, Any]]:
    """Make a message's content of media and the text after them."""
    return [*media, {"type": "text", "text": text}] if media else text


def run(command: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run a command: an HLWQError becomes one line and 2, Ctrl-C becomes 130."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("hlwq_mlx").setLevel(logging.INFO)
    try:
        command(argv)
    except HLWQError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has seen enough
        sys.stderr.close()
        return 0
    return 0


def result(text: str) -> None:
    """Give the person what was asked for, on stdout."""
    print(text)


def say(text: str) -> None:
    """Give a piece of an answer at once, on stdout."""
    print(text, end="", flush=True)


def murmur(text: str) -> None:
    """Give a piece of what is not the answer at once, on stderr."""
    print(text, end="", flush=True, file=sys.stderr)


def note(text: str) -> None:
    """Tell the person something on stderr."""
    print(text, file=sys.stderr)


def print_stream(responses: Iterable[Any]) -> str:
    """Print an answer as it comes and mlx-lm's statistics after it; return the text.

    Ctrl-C ends the answer, not the statistics, and is raised again after them.
    """
    text = ""
    last = None
    interrupted = False
    try:
        for last in responses:
            say(last.text)
            text += last.text
    except KeyboardInterrupt:
        interrupted = True
    print(flush=True)
    if last is not None:
        note("=" * 10)
        note(f"Prompt: {last.prompt_tokens} tokens, {last.prompt_tps:.3f} tokens-per-sec")
        note(
            f"Generation: {last.generation_tokens} tokens, {last.generation_tps:.3f} tokens-per-sec"
        )
        note(f"Peak memory: {last.peak_memory:.3f} GB")
    if interrupted:
        raise KeyboardInterrupt
    return text


def progress(what: str, unit: str) -> Callable[[int, int], None]:
    """Return what shows on stderr how far a step is, when it takes longer than a moment."""
    from tqdm import tqdm

    bars: list[Any] = []

    def show(done: int, total: int) -> None:
        if not bars:
            look = {"desc": what, "unit": f" {unit}", "delay": PATIENCE_S, "leave": False}
            bars.append(tqdm(total=total, **look))
        bar = bars[-1]
        bar.update(done - bar.n)
        if done == total:
            bars.pop().close()

    return show


@contextmanager
def tuned() -> Iterator[None]:
    """Set how much MLX keeps and hands the GPU at once; enter before a model is loaded."""
    import mlx.core as mx

    from . import fit
    from .quant import backend

    # Asking MLX about a GPU is its first use.
    with fit.many_in_flight(has_metal=backend.has_metal(), ram=fit.ram_bytes()):
        machine = fit.this_machine(Path.cwd())
        before = mx.set_cache_limit(machine.cache_bytes)
        try:
            yield
        finally:
            mx.set_cache_limit(before)


def settings_for(arguments: argparse.Namespace, context: int) -> "Settings":
    """Gather what the arguments say that changes how much memory is needed."""
    from .fit import Settings
    from .gemma4.caches import Caching

    caching = Caching(arguments.kv_bits, arguments.kv_group_size, arguments.max_kv_size)
    has_towers = bool(getattr(arguments, "media", ()))
    return Settings(context, arguments.prefill_step_size, caching, has_towers)


def folder_for(arguments: argparse.Namespace, settings: "Settings") -> Path:
    """Return the converted folder of the model that the arguments name.

    Without --model it is the demo's, and stderr says so.
    Raises: DeviceError for a model that this machine has no room for, unless --force is given.
    """
    from . import fit, library

    model, variant = arguments.model, arguments.variant
    if model is None:
        model, variant = str(library.DEMO), variant or library.DEMO_VARIANT
        note(
            f"This is the demo model ({variant}), which knows toy stories, small sums and digits. "
            "Name a real one with --model, as in\n"
            "  --model caiovicentino1/Gemma-4-E4B-it-HLWQ-Multi --variant PQ5"
        )
    if not arguments.force:
        fit.ask_first(model, variant, settings)
    folder = library.converted_folder(model, variant)
    if not arguments.force:
        fit.ask(folder, settings)
    return folder


def load_for(arguments: argparse.Namespace, settings: "Settings") -> tuple[Any, Any, Any]:
    """Load the model that the arguments name, its tokenizer and its sampling."""
    from . import library
    from .engine.sampling import Sampling

    given = {name: getattr(arguments, name) for name in ("temp", "top_p", "top_k", "min_p")}
    Sampling().override(**given)  # what cannot be followed is told before the work
    folder = folder_for(arguments, settings)
    recommended = Sampling.from_generation_config(library.generation_config(folder))
    return *library.load(folder), recommended.override(**given)
