"""Other ways to write a kernel: small edits of the .metal files, which variants.toml lists.

They are counted by scripts/kernels/agx/counts.py --variant, tried on the Metal host by the tests,
and timed beside the kernels as they are by scripts/first_mac_run.
"""

import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest import mock

import mlx.core as mx

from hlwq_mlx.quant import bodies

LIST = Path(__file__).with_name("variants.toml")


class Edit(NamedTuple):
    """A text of a file, which stands there once, and what takes its place."""

    file: str
    before: str
    after: str


class Variant(NamedTuple):
    """A way to write the kernels. is_same: results have the same bits as without it."""

    name: str
    bits: tuple[int, ...]
    is_same: bool
    why: str
    edits: tuple[Edit, ...]

    def write(self, folder: Path) -> None:
        """Write the .metal files with the edits made.

        Raises: ValueError where a text is not there once, since the file has changed.
        """
        copytree(bodies.metal_folder(), folder, dirs_exist_ok=True)
        for edit in self.edits:
            path = folder / edit.file
            text = path.read_text("ascii")
            if text.count(edit.before) != 1:
                raise ValueError(
                    f"[variants] needed the text that {self.name!r} edits once in {edit.file}, "
                    f"got it {text.count(edit.before)} times. Write the edit anew: {edit.before!r}"
                )
            path.write_text(text.replace(edit.before, edit.after), "ascii")


@cache
def variants() -> tuple[Variant, ...]:
    """Read the list."""

    def variant(entry: dict[str, Any]) -> Variant:
        edits = tuple(Edit(**edit) for edit in entry.pop("edit"))
        return Variant(**{**entry, "bits": tuple(entry["bits"]), "edits": edits})

    return tuple(map(variant, tomllib.loads(LIST.read_text())["variant"]))


def named(name: str) -> Variant:
    """Return a variant by its name.

    Raises: ValueError for a name that is not in the list.
    """
    for variant in variants():
        if variant.name == name:
            return variant
    raise ValueError(f"[variants] needed a name of {LIST.name}, got {name!r}. Read that file.")


@contextmanager
def texts_of(variant: Variant) -> Iterator[None]:
    """Read kernels within the block from the variant's files."""
    folder = Path(_written(variant).name)
    with mock.patch.object(bodies, "metal_folder", lambda: folder):
        yield


@contextmanager
def using(variant: Variant) -> Iterator[None]:
    """Run kernels within the block as the variant has them."""
    make = _maker(variant, mx.fast.metal_kernel)
    with texts_of(variant), mock.patch.object(mx.fast, "metal_kernel", make):
        yield


@cache
def _written(variant: Variant) -> "TemporaryDirectory[str]":
    folder = TemporaryDirectory()
    variant.write(Path(folder.name))
    return folder


@cache
def _maker(variant: Variant, make: Callable[..., Any]) -> Callable[..., Any]:
    """Give kernels names of their own: MLX compiles one anew whose text changes under its name."""
    suffix = "_" + "".join(filter(str.isalnum, variant.name))
    return lambda *, name, **texts: make(name=name + suffix, **texts)
