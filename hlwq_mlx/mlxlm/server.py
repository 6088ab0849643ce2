"""Run mlx-lm's server on one model of ours, after replacing what does not suit it.

It goes when our own server comes; until then its three files stay together.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial, wraps
from typing import Any

from mlx_lm import server

from ..cli.signals import EXIT_SIGNAL, Ended
from ..engine.sampling import Sampling
from ..errors import DeviceError
from ..folder import loading
from ..folder.folder import Folder
from ..gemma4.caches import Caching
from . import server_media, server_prompt, server_requests
from .model import Model
from .patches import replace


def ready_load(original: Callable[..., Any], caching: Caching) -> Callable[..., Any]:
    """Wrap mlx-lm's `load` so that a model of ours is ready before the first request.

    Its caches are coded from the start: mlx-lm would code those of sliding layers too, and cannot.
    """

    @wraps(original)
    def load(*args: Any, **options: Any) -> Any:
        loaded = original(*args, **options)
        if isinstance(loaded[0], Model):
            loaded[0].caching = caching
            loading.prepare(loaded[0])
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
        except Ended as ended:
            sys.stdout.flush()
            os._exit(EXIT_SIGNAL + ended.number)
        finally:
            generator.stop_and_join()

    return run_http_server


def sampling_options(sampling: Sampling) -> list[str]:
    """Return sampling as mlx-lm's options."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in asdict(sampling).items()]


def run(
    folder: Folder,
    *,
    caching: Caching,
    context: int,
    http: bool,
    options: Sequence[str],
) -> None:
    """Serve a converted folder until interrupted; `options` are mlx-lm's own.

    No prompt and no answer is longer than `context`; `http` lets media be downloaded.
    Raises: DeviceError for an mlx-lm whose server is not the one that we know.
    """
    replace(server, "load", "path_or_hf_repo", partial(ready_load, caching=caching))
    replace(server, "_run_http_server", "host port response_generator", ending_together)
    server_prompt.patch_server(server)
    vocab_size, name = folder.args.text_config.vocab_size, folder.path.resolve().name
    server_requests.patch_server(server, vocab_size, context, name)
    server_media.patch_server(server, folder.args, http=http)
    sys.argv = ["mlx_lm.server", "--model", str(folder.path), *options]
    server.main()
