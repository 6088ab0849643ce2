"""`python -m hlwq_mlx.register`: let this environment's stock mlx-lm load HLWQ folders.

Writes one small .pth file into site-packages, which imports hlwq_mlx (without MLX) when Python
starts; --remove deletes it. Without it, `import hlwq_mlx` does the same for one process.
"""

import argparse
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import cli
from .errors import DeviceError

FILE_NAME = "hlwq_mlx_register.pth"
# Silent when hlwq_mlx has been uninstalled and this file was left behind.
LINE = "import importlib.util; importlib.util.find_spec('hlwq_mlx') and __import__('hlwq_mlx')\n"


def pth_path() -> Path:
    """Return where the file lies in this environment."""
    return Path(sysconfig.get_path("purelib")) / FILE_NAME


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Raise a DeviceError that names the file when the disk refuses a change."""
    try:
        yield
    except OSError as problem:
        raise DeviceError(
            f"[register] needed to change {path}, got '{problem.strerror}'. Use an environment of "
            "your own (python -m venv), or put `import hlwq_mlx` before `import mlx_lm`."
        ) from problem


def register(path: Path) -> None:
    """Write the file.

    Raises: DeviceError when site-packages cannot be written.
    """
    with changing(path):
        path.write_text(LINE)


def remove(path: Path) -> bool:
    """Delete the file and return whether there was one.

    Raises: DeviceError when site-packages cannot be written.
    """
    with changing(path):
        was_there = path.exists()
        path.unlink(missing_ok=True)
    return was_there


def make_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(prog=cli.program("register"), description=__doc__)
    parser.add_argument("--remove", action="store_true", help="undo it")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, write or remove."""
    arguments = make_parser().parse_args(argv)
    path = pth_path()
    if arguments.remove:
        cli.note(f"removed {path}" if remove(path) else f"nothing to remove: no {path}")
    else:
        register(path)
        cli.note(f"wrote {path}; mlx_lm.load and its commands now take HLWQ folders")


if __name__ == "__main__":
    sys.exit(cli.run(main))
