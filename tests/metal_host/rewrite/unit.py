"""What a rewrite yields: text for clang, and what was taken out of it."""

from dataclasses import dataclass, field


class RewriteError(ValueError):
    """Text that the rewriter cannot follow: unbalanced brackets, parameters it cannot bind."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel: `attribute` is "buffer" or one that Metal fills in."""

    name: str
    attribute: str
    space: str


@dataclass(frozen=True)
class Kernel:
    name: str
    parameters: tuple[Parameter, ...]


@dataclass
class Unit:
    """A rewritten translation unit.

    instantiations: host name -> template id, as in "qmv_float_64_4" -> "qmv<float, 64, 4>".
    function_constants: name -> index. variables: threadgroup variables' numbers -> names.
    complaints: what Apple's compiler refuses and clang lets pass, as "file:line: error: ...".
    """

    text: str = ""
    kernels: dict[str, Kernel] = field(default_factory=dict)
    instantiations: dict[str, str] = field(default_factory=dict)
    function_constants: dict[str, int] = field(default_factory=dict)
    variables: dict[int, str] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
