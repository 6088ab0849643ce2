"""From an instruction's address to a line of the kernel, by the lines that clang records."""

from bisect import bisect_right
from functools import cache
from typing import NamedTuple

from .toolchain import INCLUDE


class Row(NamedTuple):
    address: int
    file: str
    line: int
    is_ours: bool  # within the Metal library, whose callers are what a finding names


@cache
def rows(path: str) -> list[Row]:
    """Read a shared object's line table, in order of address."""
    from elftools.elf.elffile import ELFFile

    found = []
    with open(path, "rb") as file:
        debug = ELFFile(file).get_dwarf_info()
        for unit in debug.iter_CUs():
            program = debug.line_program_for_CU(unit)
            assert program is not None, "kernels are compiled with -gline-tables-only"
            files, folders = program["file_entry"], program["include_directory"]
            for state in (entry.state for entry in program.get_entries()):
                if state is None:
                    continue
                name = files[state.file].name.decode()
                folder = folders[files[state.file].dir_index].decode()
                is_ours = f"{folder}/{name}".startswith(str(INCLUDE))
                found.append(Row(state.address, name, state.line, is_ours))
    return sorted(found, key=lambda row: row.address)


def locate(path: str, address: int) -> str:
    """Return the file and line of an address within a shared object.

    What was inlined from the Metal library belongs to the nearest line of the kernel before it.
    """
    table = rows(path)
    index = bisect_right(table, address, key=lambda row: row.address) - 1
    while index >= 0 and (table[index].is_ours or not table[index].line):
        index -= 1
    return f"{table[index].file}:{table[index].line}" if index >= 0 else f"{path}+{address:#x}"
