"""`python -m hlwq_mlx.serve`: an OpenAI-compatible server for local assistants.

It is mlx-lm's server with our model registered and thinking off; every option of `mlx_lm.server`
is passed on. A client names the model `default_model`. What mlx-lm loads is made ready as our own
loading makes it. Messages may hold pictures (image_url), sounds (input_audio) and videos, as data
URLs. One fault of mlx-lm 0.32.2 is put right: a request whose top_k is not below the vocabulary's
size ends its only generation thread.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any

from . import cli

if TYPE_CHECKING:
    from .gemma4.caching import Caching

THINKING_OFF = '{"enable_thinking": false}'


def make_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m hlwq_mlx.serve",
        description=__doc__,
        allow_abbrev=False,
        epilog="Further options are those of mlx_lm.server, as --host 127.0.0.1 --port 8080.",
    )
    cli.add_model_args(parser)
    parser.add_argument(
        "--chat-template-args",
        default=THINKING_OFF,
        metavar="JSON",
        help=f"variables for the chat template (default: {THINKING_OFF})",
    )
    parser.add_argument(
        "--allow-http",
        action="store_true",
        help="download media from the web addresses that clients name",
    )
    cli.add_kv_args(parser)
    return parser


def bounded_make_sampler(original: Callable[..., Any], vocab_size: int) -> Callable[..., Any]:
    """Wrap mlx-lm's `make_sampler` so that every top_k can be served."""
    from .engine.sampling import bounded_top_k

    @wraps(original)
    def make_sampler(*args: Any, top_k: int = 0, **options: Any) -> Any:
        return original(*args, top_k=bounded_top_k(top_k, vocab_size), **options)

    return make_sampler


def ready_load(original: Callable[..., Any], caching: "Caching") -> Callable[..., Any]:
    """Wrap mlx-lm's `load` so that a model of ours is ready before the first request.

    Its caches are coded from the start: mlx-lm would code those of sliding layers too, and cannot.
    """
    from .gemma4.model import Model
    from .store import checkpoint

    @wraps(original)
    def load(*args: Any, **options: Any) -> Any:
        loaded = original(*args, **options)
        if isinstance(loaded[0], Model):
            loaded[0].caching = caching
            checkpoint.prepare(loaded[0])
        return loaded

    return load


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, convert if needed, serve until interrupted."""
    arguments, passed_on = make_parser().parse_known_args(argv)
    with cli.tuned():
        serve(arguments, passed_on)


def serve(arguments: argparse.Namespace, passed_on: Sequence[str]) -> None:
    """Run mlx-lm's server on the model that the arguments name."""
    from mlx_lm import server

    from . import fit, server_media
    from .gemma4.config import Gemma4Config
    from .store.source import read_json

    settings = cli.settings_for(arguments, cli.CONTEXT)
    with_media = replace(settings, has_towers=True)  # a request may bring a picture at any time
    folder = cli.folder_for(arguments, settings)
    config = Gemma4Config.from_dict(read_json(folder / "config.json"))
    server.make_sampler = bounded_make_sampler(server.make_sampler, config.text_config.vocab_size)
    server.load = ready_load(server.load, settings.caching)
    server_media.teach(server, config, http=arguments.allow_http)
    sys.argv = [
        "mlx_lm.server",
        *("--model", str(folder)),
        *("--chat-template-args", arguments.chat_template_args),
        *("--prefill-step-size", str(settings.prefill_step)),
        *("--prompt-cache-bytes", str(fit.spare_bytes(folder, with_media))),
        *passed_on,
    ]
    server.main()


if __name__ == "__main__":
    sys.exit(cli.run(main))
