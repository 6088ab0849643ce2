"""`python -m hlwq_mlx.serve`: an OpenAI-compatible server for local assistants.

It is mlx-lm's server with our model registered and thinking off; every option of `mlx_lm.server`
is passed on. A client names the model `default_model`.
"""

import argparse
import sys
from collections.abc import Sequence

from . import cli

THINKING_OFF = '{"enable_thinking": false}'


def make_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m hlwq_mlx.serve",
        description=__doc__,
        epilog="Further options are those of mlx_lm.server, as --host 127.0.0.1 --port 8080.",
    )
    cli.add_model_args(parser)
    parser.add_argument(
        "--chat-template-args",
        default=THINKING_OFF,
        metavar="JSON",
        help=f"variables for the chat template (default: {THINKING_OFF})",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, convert if needed, serve until interrupted."""
    arguments, passed_on = make_parser().parse_known_args(argv)
    from mlx_lm import server

    folder = cli.folder_for(arguments)
    sys.argv = [
        "mlx_lm.server",
        *("--model", str(folder)),
        *("--chat-template-args", arguments.chat_template_args),
        *passed_on,
    ]
    server.main()


if __name__ == "__main__":
    sys.exit(cli.run(main))
