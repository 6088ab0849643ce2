"""Rules of the house that a reader can rely on: who imports whom, and how large things get."""

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import hlwq_mlx
from hlwq_mlx.__main__ import commands

PACKAGE = Path(hlwq_mlx.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 500
LONGEST_FUNCTION = 60
LONGEST_README = 150

# What each room may import besides itself: rooms above it alone, so that there is no circle.
MAY_IMPORT = {
    "errors": set(),
    "disk": {"errors"},
    "quant": {"errors", "disk"},
    "gemma4": {"errors", "disk", "quant"},
    "dialog": {"errors", "disk"},
    "media": {"errors", "disk"},
    "source": {"errors", "disk", "quant"},
    "engine": {"errors", "disk", "quant", "gemma4"},
    "folder": {"errors", "disk", "quant", "gemma4", "dialog", "media", "source", "engine"},
    "write": {"errors", "disk", "quant", "gemma4", "source", "folder"},
    "memory": {"errors", "disk", "quant", "gemma4", "media", "source", "engine", "folder", "write"},
    "sharding": {"errors", "disk", "quant", "gemma4", "folder", "memory"},
    "prompt": {"errors", "gemma4", "dialog", "media", "engine"},
    "cli": {
        *("errors", "disk", "quant", "gemma4", "dialog", "media", "engine", "folder", "write"),
        *("memory", "sharding"),
    },
}
# Users' front ends, which may import every room above them.
FRONT = ("library", "compat", "server", "mlxlm")
ROOMS = (*MAY_IMPORT, *FRONT)
# What stands at the top of the package; everything else has a room.
TOP = {"__init__", "__main__", "errors", "library", "prompt"}
NEVER_NAMED = {"utils.py", "helpers.py", "common.py", "types.py"}
TYPES_ALONE = "TYPE_CHECKING"


class Import(NamedTuple):
    """A module that a file imports, and whether importing the file does so at once."""

    module: str
    is_late: bool


def module_of(path: Path) -> str:
    """Return the name under which a file is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def room_of(module: str) -> str:
    """Return the room that a module of ours belongs to: its own name at the top."""
    return [*module.split("."), "__init__"][1]


@cache
def imports_of(path: Path) -> frozenset[Import]:
    """Return what a file imports, whichever way it writes it, inside functions too."""
    package = [*path.relative_to(ROOT).parts[:-1]]
    found = set()

    def visit(node: ast.AST, is_late: bool) -> None:
        if isinstance(node, ast.Import):
            found.update(Import(alias.name, is_late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *filter(None, [node.module])])
            names = (f"{stem}.{alias.name}" for alias in node.names)
            found.update(Import(name if name in MODULES else stem, is_late) for name in names)
        is_late |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        is_late |= isinstance(node, ast.If) and TYPES_ALONE in ast.dump(node.test)
        for child in ast.iter_child_nodes(node):
            visit(child, is_late)

    visit(ast.parse(path.read_text()), False)
    return frozenset(found)


def test_a_room_imports_rooms_above_it_alone():
    assert [(room, allowed) for room, allowed in MAY_IMPORT.items() if room in allowed] == []
    above = set()
    for room, allowed in MAY_IMPORT.items():
        assert allowed <= above, room
        above.add(room)


def test_imports_go_one_way():
    allowed = MAY_IMPORT | {room: set(ROOMS[:at]) for at, room in enumerate(ROOMS) if room in FRONT}
    wrong = []
    for module, path in MODULES.items():
        room = room_of(module)
        if room not in allowed:  # the commands, and what holds the package together
            assert room in {*commands(), "__init__", "__main__"}, f"no rule for {module}"
            continue
        ours = {each.module for each in imports_of(path) if each.module in MODULES}
        wrong += [
            f"{module} imports {each}"
            for each in sorted(ours)
            if room_of(each) not in {room, *allowed[room]}
        ]
    assert wrong == []


def test_no_module_imports_itself_in_a_circle():
    graph = {
        module: {each.module for each in imports_of(path) if not each.is_late} & MODULES.keys()
        for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as problem:
        raise AssertionError(problem.args[1]) from problem


def test_mlx_lm_is_imported_in_one_room():
    importing = {
        module
        for module, path in MODULES.items()
        for each in imports_of(path)
        if each.module.partition(".")[0] == "mlx_lm" and room_of(module) != "mlxlm"
    }
    assert importing == set()


def test_the_top_of_the_package_has_the_commands_and_little_else():
    assert {path.stem for path in PACKAGE.glob("*.py")} == TOP | commands().keys()


def test_the_map_of_the_rooms_is_true():
    rows = re.findall(
        r"^\| `(\w+)(?:/|\.py)` \|", (PACKAGE / "README.md").read_text(), re.MULTILINE
    )
    assert rows == list(ROOMS)


def test_files_and_functions_stay_readable():
    written = (
        path
        for room in ("hlwq_mlx", "scripts", "tests")
        for path in sorted((ROOT / room).rglob("*.py"))
        if "data" not in path.parts
    )
    texts = {path: path.read_text() for path in written}
    long = {str(path.relative_to(ROOT)): len(text.splitlines()) for path, text in texts.items()}
    assert {name: lines for name, lines in long.items() if lines > LONGEST_FILE} == {}
    functions = {
        f"{path.name}: {node.name}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(texts[path]))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in functions.items() if lines > LONGEST_FUNCTION} == {}


def test_the_readme_stays_readable():
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST_README


def test_every_module_says_what_it_is():
    bare = [path.name for path in FILES if ast.get_docstring(ast.parse(path.read_text())) is None]
    assert bare == []


def test_no_room_for_everything():
    assert NEVER_NAMED.isdisjoint(path.name for path in FILES)


def test_only_the_commands_print():
    printing = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    }
    assert printing <= {"hlwq_mlx.cli.console"}


def test_media_are_opened_in_one_place():
    """FFmpeg follows playlists to other files unless it is told not to."""
    opening = {module for module, path in MODULES.items() if "av.open(" in path.read_text()}
    assert opening == {"hlwq_mlx.media.container"}


def test_exported_names_exist():
    for name in hlwq_mlx.__all__:
        assert callable(getattr(hlwq_mlx, name)), name
