"""Sizes of files and memory as people read them, in one form everywhere."""

UNITS = (("GB", 1e9), ("MB", 1e6))


def format_bytes(size: float) -> str:
    """Return a size as text, in the largest unit that it fills, kB at least."""
    for unit, scale in UNITS:
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size / 1e3:.2f} kB"
