"""Rules of the house that a reader can rely on: who imports whom, and how large things get."""

import ast
from pathlib import Path

import hlwq_mlx

PACKAGE = Path(hlwq_mlx.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 500
LONGEST_FUNCTION = 60

# What each room may import, besides itself. Commands and `library` may import every room.
MAY_IMPORT = {
    "errors": set(),
    "strict": {"errors"},
    "quant": {"errors"},
    "gemma4": {"errors", "strict", "quant"},
    "child": set(),
    "store": {"errors", "strict", "quant", "gemma4", "dialog", "engine", "media"},
    "engine": {"errors", "gemma4"},
    "dialog": {"errors", "child"},
    "media": {"errors", "strict"},
    "perceive": {"errors", "gemma4", "engine", "dialog", "media"},
}
NEVER_NAMED = {"utils.py", "helpers.py", "common.py", "types.py"}


def room_of(path: Path) -> str:
    """The sub-package a file belongs to, or its own name at the top level."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported_rooms(path: Path) -> set[str]:
    """The rooms of this package that a file imports, whichever way it spells them."""
    package = ["hlwq_mlx", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = [*base, *(node.module.split(".") if node.module else [])]
            names = [".".join([*stem, alias.name]) for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("hlwq_mlx.")}
    return found


def test_imports_go_one_way():
    wrong = {}
    for path in FILES:
        room = room_of(path)
        if room in MAY_IMPORT and (rooms := imported_rooms(path) - {room} - MAY_IMPORT[room]):
            wrong[str(path.relative_to(PACKAGE))] = rooms
    assert wrong == {}


def test_files_and_functions_stay_readable():
    long = {}
    for path in FILES:
        text = path.read_text()
        sizes = {path.name: (len(text.splitlines()), LONGEST_FILE)}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                sizes[f"{path.name}: {node.name}"] = (
                    node.end_lineno - node.lineno + 1,
                    LONGEST_FUNCTION,
                )
        long |= {name: lines for name, (lines, most) in sizes.items() if lines > most}
    assert long == {}


def test_every_module_says_what_it_is():
    bare = [path.name for path in FILES if ast.get_docstring(ast.parse(path.read_text())) is None]
    assert bare == []


def test_no_room_for_everything():
    assert NEVER_NAMED.isdisjoint(path.name for path in FILES)


def test_only_the_commands_print():
    printing = {
        path.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    }
    assert printing <= {"console.py"}


def test_media_are_opened_in_one_place():
    """FFmpeg follows playlists to other files unless it is told not to."""
    opening = {path.name for path in FILES if "av.open(" in path.read_text()}
    assert opening == {"container.py"}


def test_exported_names_exist():
    for name in hlwq_mlx.__all__:
        assert callable(getattr(hlwq_mlx, name)), name
