"""`python -m hlwq_mlx.generate`: answer a prompt, word by word.

`hlwq_mlx.generate` is also a function (see library.generate). The import of this module replaces
that name by the module, so the module itself can be called.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import cli
from .cli.screen import as_content
from .dialog import template
from .dialog.grammar import Event, opens_thought, read_answer
from .dialog.interface import TokenizerLike
from .dialog.parts import Medium
from .errors import RequestError

if TYPE_CHECKING:
    from .dialog.tokenizer import Tokenizer

DEFAULT_PROMPT = "Hello!"
LETTERS = 3  # characters a token, an estimate for before the tokenizer is loaded


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> str:
        from .library import generate

        return generate(*args, **options)


sys.modules[__name__].__class__ = _CallableModule


def make_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    description = str(__doc__).partition("\n")[0]
    parser = argparse.ArgumentParser(prog=cli.program("generate"), description=description)
    cli.add_model_args(parser)
    parser.add_argument(
        *("--prompt", "-p"),
        type=cli.text,
        default=DEFAULT_PROMPT,
        help="what to ask; - reads it from stdin",
    )
    cli.add_media_args(parser, message="the prompt")
    cli.add_answer_args(parser, max_tokens=256)
    parser.add_argument(
        "--stop",
        type=cli.text,
        action="append",
        default=[],
        metavar="TEXT",
        help="stop before TEXT; repeatable",
    )
    parser.add_argument(
        "--extra-eos-token",
        nargs="+",
        action="extend",
        default=[],
        metavar="TOKEN",
        help="stop at TOKEN too; repeatable",
    )
    parser.add_argument(
        "--raw",
        "--ignore-chat-template",
        dest="ignore_chat_template",
        action="store_true",
        help="the prompt is the whole text, its control tokens included: no chat template",
    )
    parser.add_argument(
        "--chat-template-config",
        type=cli.json_object,
        default={},
        metavar="JSON",
        help="more variables for the chat template",
    )
    cli.add_sampling_args(parser)
    cli.add_memory_args(parser)
    cli.add_draft_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, load, answer."""
    arguments = make_parser().parse_args(argv)
    with cli.tuned():
        if cli.leads(arguments):
            answer(arguments, cli.read_stdin() if arguments.prompt == "-" else arguments.prompt)


def answer(arguments: argparse.Namespace, prompt: str) -> None:
    """Load the model and print its answer as it comes."""
    import mlx.core as mx

    from . import library

    letters = len(prompt) + len(arguments.system_prompt or "")
    most_tokens = arguments.max_tokens if arguments.max_tokens > 0 else cli.CONTEXT
    settings = cli.settings_for(arguments, letters // LETTERS + most_tokens)
    loaded = cli.load_for(arguments, settings)
    settings = cli.with_chunk(arguments, loaded.folder, settings)
    for token in arguments.extra_eos_token:
        add_stop_token(loaded.tokenizer, token)
    if arguments.seed is not None:
        mx.random.seed(arguments.seed)
    rendered = render_prompt(arguments, loaded.tokenizer, prompt)
    cli.print_stream(
        library.stream_generate(
            loaded.model,
            loaded.tokenizer,
            rendered,
            stop=arguments.stop,
            **cli.answer_options(arguments, settings, loaded),
        ),
        reader(arguments, rendered),
    )


def render_prompt(
    arguments: argparse.Namespace, tokenizer: TokenizerLike, prompt: str
) -> template.Rendered:
    """Return the prompt as the model reads it: by its chat template, or raw if asked for."""
    if arguments.ignore_chat_template:
        refuse_template_options(arguments)
        media = tuple(Medium(part["type"], part["path"]) for part in arguments.media)
        return template.Rendered(prompt, media)
    messages = [{"role": "user", "content": cli.content_of(arguments.media, prompt)}]
    if arguments.system_prompt is not None:
        messages.insert(0, {"role": "system", "content": arguments.system_prompt})
    return template.render(
        tokenizer, messages, thinking=arguments.think, options=arguments.chat_template_config
    )


def reader(
    arguments: argparse.Namespace, rendered: template.Rendered
) -> Callable[[Iterable[str]], Iterator[Event]]:
    """Return the function that separates thought from answer; raw prompts have no such parts."""
    if arguments.ignore_chat_template:
        return as_content
    return partial(read_answer, in_thought=opens_thought(rendered.text))


def add_stop_token(tokenizer: "Tokenizer", token: str) -> None:
    """Add a token, by its text or its id, to those that end answers.

    Raises: RequestError when the vocabulary has no such token.
    """
    vocabulary = tokenizer.get_vocab()
    known = int(token) in vocabulary.values() if token.isdigit() else token in vocabulary
    if not known:
        raise RequestError(
            f"[extra-eos-token] needed a token of the vocabulary or its id, got {token!r}. "
            "Write it as tokenizer.json does."
        )
    tokenizer.add_eos_token(token)


def refuse_template_options(arguments: argparse.Namespace) -> None:
    """Refuse options that only a chat template can follow."""
    if arguments.system_prompt is not None or arguments.think or arguments.chat_template_config:
        raise RequestError(
            "[ignore-chat-template] needed a plain prompt, got --system-prompt, --think or "
            "--chat-template-config, which only a template can follow. Leave out one or the other."
        )


if __name__ == "__main__":
    sys.exit(cli.run(main))
