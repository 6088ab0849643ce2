"""What converting or quantizing from the hub needs of the disk at most, by the files' headers.

Without --discard-source that is the whole source and the whole output. With it, a file of the
source goes when all that is made of it is written, and the table of rows moves (write/staged).
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..disk.sizes import format_bytes
from ..errors import DeviceError
from ..folder.folder import CONFIG
from ..folder.names import ROW_TABLE
from ..source.coded import parse_key
from ..source.rules import Rule
from ..write import staged
from ..write.check import canonical_name
from .inventory import Inventory, as_converted, as_quantized, of_headers

if TYPE_CHECKING:
    from ..source.hub import Headers

SPARE_BYTES = 1 << 28  # tokenizer, index, checksums, and what a header does not show


@dataclass(frozen=True)
class DiskNeed:
    """Bytes at a conversion's peak: of the source, of the output, and of both at once.

    `here` are those of the source that are on this machine already.
    """

    source: int
    output: int
    together: int
    here: int

    def line(self, cache: Path, output: Path) -> str:
        """Return it as a line for a person, with what is free."""
        return "disk: " + "; ".join(
            f"{format_bytes(needed)} more at most in {folder}, {format_bytes(free)} free"
            for folder, needed, free in self._asked(cache, output)
        )

    def require(self, cache: Path, output: Path) -> None:
        """Refuse what does not fit.

        Raises: DeviceError.
        """
        for folder, needed, free in self._asked(cache, output):
            if needed > free:
                raise DeviceError(
                    f"[disk] needed {format_bytes(needed)} in {folder}, got {format_bytes(free)} "
                    "free. Free disk space, choose another --output or HF_HOME, or begin "
                    "nevertheless with --force."
                )

    def _asked(self, cache: Path, output: Path) -> list[tuple[Path, int, int]]:
        """Return each disk's folder, the bytes needed there and the bytes that are free."""
        cache, output = _existing(cache), _existing(output)
        if os.stat(cache).st_dev == os.stat(output).st_dev:
            needs = [(output, self.together - self.here)]
        else:
            needs = [(cache, self.source - self.here), (output, self.output)]
        return [(folder, need, shutil.disk_usage(folder).free) for folder, need in needs]


def disk_need(
    found: "Headers", choice: str, *, is_discarded: bool, rule: Rule | None = None
) -> DiskNeed:
    """Return what converting a model on the hub needs; `choice` is one of leftovers.CHOICES.

    A `rule` says what of a 16-bit model is coded besides.
    """
    here = sum(file.size - file.missing for file in found.weights)
    source = sum(file.size for file in found.weights)
    inventory = of_headers(found.variant, found.config, found.headers, CONFIG)
    as_made = as_converted(inventory, choice)
    if rule is not None:
        as_made = as_quantized(inventory, rule, choice)
    made = _made(found, as_made)
    output = SPARE_BYTES + sum(each.shards + each.rows for each in made)
    if not is_discarded:
        return DiskNeed(source, output, source + output, here)
    held, written, together = source, SPARE_BYTES, 0
    for file, each in sorted(zip(found.weights, made, strict=True), key=lambda it: it[0].size):
        twice = min(each.rows, staged.MOVED_BYTES) if each.is_moved else each.rows
        together = max(together, held + written + each.shards + twice)
        written += each.shards + each.rows
        held -= file.size
    return DiskNeed(source, output, together, here)


class _Made(NamedTuple):
    """What is made of a file: bytes of shards and of the row store, which may move."""

    shards: int
    rows: int
    is_moved: bool


def _made(found: "Headers", converted: Inventory) -> list[_Made]:
    sizes = {entry.name: entry.stored_bytes for entry in converted.entries}
    made = []
    for file in found.weights:
        keys = {name: parse_key(name) for name in file.specs}
        names = {canonical_name(key.tensor if key else name) for name, key in keys.items()}
        rows = sizes.pop(ROW_TABLE, 0) if ROW_TABLE in names else 0
        shards = sum(sizes.pop(name, 0) for name in names)
        is_plain = any(canonical_name(name) == ROW_TABLE for name in file.specs)
        made.append(_Made(shards, rows, is_plain))
    return made


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
