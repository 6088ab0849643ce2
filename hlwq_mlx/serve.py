"""`python -m hlwq_mlx.serve`: an OpenAI-compatible server for local assistants.

Its base URL is http://127.0.0.1:8080/v1, and a client may call the model what it likes. Messages
may hold pictures (image_url), sounds (input_audio) and videos, as data URLs. Thinking is off, and
options that a request leaves open follow the checkpoint's generation_config.json. It is mlx-lm's
server, to which all further options are passed on.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import wraps
from typing import TYPE_CHECKING, Any

from . import cli
from .errors import DeviceError

if TYPE_CHECKING:
    from .engine.sampling import Sampling
    from .gemma4.caching import Caching

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


def ending_together(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap mlx-lm's HTTP loop so that its generation thread ends with it, whatever ends it.

    A signal ends both at once: the thread would finish an answer that nobody will get.
    Raises: DeviceError when it cannot listen; mlx-lm's thread would keep the command alive.
    """

    @wraps(original)
    def run_http_server(host: str, port: int, generator: Any, *more: Any, **options: Any) -> None:
        try:
            original(host, port, generator, *more, **options)
        except OSError as problem:
            raise DeviceError(
                f"[serve] needed to listen on port {port} of {host}, got '{problem.strerror}'. "
                "Choose another --port, or end the program that has it."
            ) from problem
        except cli.Ended as ended:
            sys.stdout.flush()
            os._exit(cli.EXIT_SIGNAL + ended.number)
        finally:
            generator.stop_and_join()

    return run_http_server


def sampling_options(sampling: "Sampling") -> list[str]:
    """Spell sampling as mlx-lm's options."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in asdict(sampling).items()]


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, convert if needed, serve until interrupted."""
    arguments, passed_on = make_parser().parse_known_args(argv)
    with cli.tuned():
        serve(arguments, passed_on)


def serve(arguments: argparse.Namespace, passed_on: Sequence[str]) -> None:
    """Run mlx-lm's server on the model that the arguments name."""
    from mlx_lm import server

    from . import fit, library, server_media, server_prompt, server_requests
    from .engine.sampling import Sampling
    from .gemma4.config import Gemma4Config
    from .store import side_files
    from .strict.jsonfile import read_json

    settings = cli.settings_for(arguments, cli.CONTEXT)
    with_media = replace(settings, has_towers=True)  # a request may bring a picture at any time
    folder = cli.folder_for(arguments, settings)
    side_files.open_tokenizer(folder)  # mlx-lm loads it again, and would end in a traceback
    config = Gemma4Config.from_dict(read_json(folder / "config.json"))
    sampling = Sampling.from_generation_config(library.generation_config(folder))
    server.load = server_requests.watching(ready_load(server.load, settings.caching), server)
    server._run_http_server = ending_together(server._run_http_server)
    server_prompt.teach(server)
    text = config.text_config
    context = fit.room(folder, settings) or text.max_position_embeddings  # it may be forced
    server_requests.teach(server, text.vocab_size, context, folder.resolve().name)
    server_media.teach(server, config, http=arguments.allow_http)
    sys.argv = [
        "mlx_lm.server",
        *("--model", str(folder)),
        *("--chat-template-args", arguments.chat_template_args),
        *("--prefill-step-size", str(settings.prefill_step)),
        *("--prompt-cache-bytes", str(fit.spare_bytes(folder, with_media))),
        *sampling_options(sampling),
        *passed_on,
    ]
    server.main()


if __name__ == "__main__":
    code = cli.run(main)
    sys.stdout.flush()
    # MLX's threads may still let go of Python objects: taking the interpreter down aborts then.
    os._exit(code)
