"""Where this program keeps what it made in passing and can make again."""

import os
from pathlib import Path

CACHE_VARIABLE = "HLWQ_CACHE"


def cache_folder() -> Path:
    """Return the folder of what was made in passing: $HLWQ_CACHE, or ~/.cache/hlwq_mlx."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else Path.home() / ".cache" / "hlwq_mlx"
