"""`python -m hlwq_mlx.serve`: an OpenAI-compatible server for local assistants.

Its base URL is http://127.0.0.1:8080/v1, and a client may give the model any name. Messages may
hold pictures (image_url), sounds (input_audio) and videos, as data URLs. Thinking is off, and
options that a request leaves out follow the checkpoint's generation_config.json. The server is
mlx-lm's, and all further options are passed on to it.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from . import cli

THINKING_OFF = '{"enable_thinking": false}'


def make_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog=cli.program("serve"),
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


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, convert if needed, serve until interrupted."""
    arguments, passed_on = make_parser().parse_known_args(argv)
    with cli.tuned():
        serve(arguments, passed_on)


def serve(arguments: argparse.Namespace, passed_on: Sequence[str]) -> None:
    """Serve the model that the arguments name."""
    from .engine.sampling import Sampling
    from .folder import side_files
    from .memory.verdict import plan
    from .mlxlm import server

    settings = cli.settings_for(arguments, cli.CONTEXT)
    folder = cli.folder_for(arguments, settings)
    verdict = plan(folder, replace(settings, has_towers=True))  # any request may bring a picture
    side_files.open_tokenizer(folder)  # mlx-lm loads it again, and would end in a traceback
    sampling = Sampling.from_generation_config(folder.generation)
    most = folder.args.text_config.max_position_embeddings
    server.run(
        folder,
        caching=settings.caching,
        context=verdict.longest_context or most,  # it may be forced
        http=arguments.allow_http,
        options=[
            *("--chat-template-args", arguments.chat_template_args),
            *("--prefill-step-size", str(settings.prefill_step)),
            *("--prompt-cache-bytes", str(verdict.spare_bytes)),
            *server.sampling_options(sampling),
            *passed_on,
        ],
    )


if __name__ == "__main__":
    code = cli.run(main)
    sys.stdout.flush()
    # MLX's threads may still release Python objects, and the interpreter's own exit would abort
    # then.
    os._exit(code)
