"""`python -m hlwq_mlx.serve`: a server for local assistants, in the dialects they speak.

OpenAI's clients use http://127.0.0.1:8080/v1, Anthropic's and Ollama's http://127.0.0.1:8080; a
browser shows a chat page there. Clients may give the model any name. Messages may hold pictures,
sounds and videos, as data URLs. Thinking is off unless a request asks for it, and sampling options
that a request leaves out follow the checkpoint's generation_config.json.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import cli

KEY_VARIABLE = "HLWQ_API_KEY"
PATIENCE_S = 5  # for clients to read that their answers ended


def make_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(prog=cli.program("serve"), description=__doc__)
    cli.add_model_args(parser)
    parser.add_argument(
        "--alias", metavar="NAME", help="the model's name in lists (default: its folder's)"
    )
    parser.add_argument(
        "--think", action="store_true", help="let the model think where a request leaves it open"
    )
    parser.add_argument(
        "--chat-template-args",
        type=cli.json_object,
        default={},
        metavar="JSON",
        help="more variables for the chat template",
    )
    _add_network_args(parser)
    _add_work_args(parser)
    cli.add_memory_args(parser)
    cli.add_draft_args(parser)
    return parser


def _add_network_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    group.add_argument(
        "--port",
        type=int,
        default=8080,
        metavar="N",
        help="port to listen on; 11434 is Ollama's, where its clients look (default: 8080)",
    )
    group.add_argument(
        "--allowed-hosts",
        type=_names,
        default=(),
        metavar="NAMES",
        help="names of this machine beside localhost that requests may use, with commas between",
    )
    group.add_argument(
        "--allowed-origins",
        type=_names,
        default=(),
        metavar="ORIGINS",
        help="web pages beside those of this machine that may ask, with commas between; * is all",
    )
    group.add_argument(
        "--api-key",
        default=os.environ.get(KEY_VARIABLE),
        metavar="KEY",
        help=f"what requests must bring as their key (default: ${KEY_VARIABLE}, else none)",
    )
    group.add_argument(
        "--allow-http",
        action="store_true",
        help="download media from the web addresses that clients name, but none of this network",
    )


def _add_work_args(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("work")
    group.add_argument(
        "--context",
        type=cli.count,
        metavar="N",
        help="tokens that a prompt and its answer have together (default: what fits)",
    )
    group.add_argument(
        "--max-queue",
        type=cli.count,
        default=64,
        metavar="N",
        help="requests that may wait; more are told to come back (default: 64)",
    )
    group.add_argument(
        "--prompt-cache-bytes",
        type=cli.count,
        metavar="N",
        help="memory for what was read of earlier prompts (default: a part of what is free)",
    )
    group.add_argument(
        "--prompt-cache-dir",
        type=Path,
        metavar="DIR",
        help="keep what was read of earlier prompts on disk too, for the next start",
    )
    group.add_argument(
        "--idle-unload",
        type=cli.count,
        metavar="SECONDS",
        help="free the model's memory when nobody has asked for so long; it is loaded again",
    )
    group.add_argument(
        "--drain",
        type=cli.count,
        default=30,
        metavar="SECONDS",
        help="how long answers may go on after SIGTERM (default: 30)",
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, convert if needed, serve until told to end."""
    arguments = make_parser().parse_args(argv)
    with cli.tuned():
        if cli.leads(arguments):
            serve(arguments)


def serve(arguments: argparse.Namespace) -> None:
    """Serve the model that the arguments name."""
    from .server import listen, start

    # The socket first: what is wrong with it is told before the model is loaded.
    with (
        listen.bind(arguments.host, arguments.port) as bound,
        start.application(arguments) as started,
    ):
        cli.note(f"Listening at {listen.address(bound)}, Ctrl-C ends.")
        listen.run(started.app, bound, started.drain, arguments.drain + PATIENCE_S)


if __name__ == "__main__":
    sys.exit(cli.run(main))
