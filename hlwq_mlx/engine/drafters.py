"""The drafters by their names, as the commands and the library know them."""

from collections.abc import Callable, Mapping

from ..errors import RequestError
from .draft import Drafter
from .lookup import Lookup

_BY_NAME: Mapping[str, Callable[[], Drafter | None]] = {"none": lambda: None, "lookup": Lookup}


def find_drafter(draft: str | Drafter | None) -> Drafter | None:
    """Return the drafter of a name; one that is given as it is, or none at all, stays.

    Raises: RequestError when there is none of this name.
    """
    if not isinstance(draft, str):
        return draft
    if draft not in _BY_NAME:
        raise RequestError(
            f"[draft] needed one of {', '.join(_BY_NAME)}, got {draft[:80]}. Choose one of these."
        )
    return _BY_NAME[draft]()
