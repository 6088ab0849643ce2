"""What a conversion from the hub needs of the disk at most, by the headers of the files.

Without --discard-source that is the whole source and the whole output. With it, a file of the
source goes when all that is made of it is written, and the table of rows moves (write/staged).
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..disk.sizes import format_bytes
from ..disk.tensorfile import TensorSpec
from ..errors import DeviceError
from ..folder.names import ROW_TABLE
from ..source.coded import parse_key
from ..write.check import canonical_name
from ..write.staged import MOVED_BYTES
from .inventory import Inventory, as_converted, of_headers

if TYPE_CHECKING:
    from ..source.hub import Headers

_SPARE_BYTES = 1 << 28  # tokenizer, index, checksums, and what a header does not show


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


def disk_need(found: "Headers", choice: str, *, is_discarded: bool) -> DiskNeed:
    """Return what converting a model on the hub needs; `choice` is one of leftovers.CHOICES."""
    here = sum(file.size - file.missing for file in found.weights)
    source = sum(file.size for file in found.weights)
    made = _made(
        found, as_converted(of_headers(found.variant, found.config, found.headers, ""), choice)
    )
    output = sum(made) + _SPARE_BYTES
    if not is_discarded:
        return DiskNeed(source, output, source + output, here)
    held, written, together = source, _SPARE_BYTES, 0
    for file, new in sorted(zip(found.weights, made, strict=True), key=lambda each: each[0].size):
        moved = _table_bytes(file.specs)  # of it only a part is twice on the disk
        written += new - moved + min(moved, MOVED_BYTES)
        together = max(together, held + written)
        written += moved - min(moved, MOVED_BYTES)
        held -= file.size
    return DiskNeed(source, output, together, here)


def _made(found: "Headers", converted: Inventory) -> Sequence[int]:
    """Return the bytes that are made of each file of the source."""
    sizes = {entry.name: entry.stored_bytes for entry in converted.entries}
    made = []
    for file in found.weights:
        keys = {name: parse_key(name) for name in file.specs}
        names = {canonical_name(key.tensor if key else name) for name, key in keys.items()}
        made.append(sum(sizes.pop(name, 0) for name in names))
    return made


def _table_bytes(specs: Mapping[str, TensorSpec]) -> int:
    """Return the bytes of the table of rows, if it lies there uncoded."""
    return sum(spec.nbytes for name, spec in specs.items() if canonical_name(name) == ROW_TABLE)


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
