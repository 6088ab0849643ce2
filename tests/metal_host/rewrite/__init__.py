"""From Metal to C++ for OpenCL: a rewrite of preprocessed kernel text, token by token.

What the two languages share (templates, address spaces, vectors, half) is left to clang. Each pass
changes or records one thing that clang's front end cannot take; `PASSES` is their order.
"""

from . import casts, entries, keywords, lint, variables
from .tokens import Tokens
from .unit import Kernel, Parameter, RewriteError, Unit

__all__ = ["Kernel", "Parameter", "RewriteError", "Unit", "rewrite"]

PASSES = (
    entries.take_instantiations,
    entries.take_kernels,
    entries.define_function_constants,
    lint.complain,
    entries.erase_attributes,
    variables.place_threadgroup_variables,
    casts.build_vectors,
    casts.convert_scalars,
    keywords.soften_thread_qualifiers,
    keywords.rewrite_words,
)


def rewrite(source: str) -> Unit:
    """Rewrite preprocessed text, and record the kernels and what is wrong with them."""
    tokens = Tokens(source)
    unit = Unit()
    for apply in PASSES:
        apply(tokens, unit)
    unit.text = str(tokens)
    return unit
