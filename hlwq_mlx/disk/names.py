"""Check names that a folder or a hub states: they must be of files in that very folder.

A name with a path in it could lead to any file of this machine.
"""

from ..errors import SourceError


def is_plain(name: str) -> bool:
    """Return whether a name is that of a file in the folder itself."""
    return name not in ("", ".", "..") and not {"/", "\\", "\0"} & set(name)


def require_plain(name: str, where: str) -> str:
    """Return a name that is plain; `where` is the file that states it.

    Raises: SourceError.
    """
    if not is_plain(name):
        raise SourceError(
            f"[{where}] needed names of files in its own folder, got {name!r}. "
            "Download the model again, or ask its publisher for a whole one."
        )
    return name
