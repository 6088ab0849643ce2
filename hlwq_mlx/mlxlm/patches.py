"""Replace functions of mlx-lm, each only if it is the one that we know.

An assignment to a name that mlx-lm gave up would raise nothing and change nothing, and a guard of
ours would be gone unseen. So every replacement goes through `replace`, which checks the name and
the parameters first. It takes mlx-lm's modules from the caller: importing this file imports none.
"""

import inspect
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..errors import DeviceError

KNOWN_VERSIONS = ">=0.32.2,<0.33"  # as in pyproject.toml


def replace(owner: Any, name: str, parameters: str, make: Callable[[Any], Any]) -> None:
    """Replace `owner.name`, of a module or class of mlx-lm, by what `make` returns for it.

    `parameters` are the known ones in their order; mlx-lm may add others that have defaults.
    Raises: DeviceError, before anything is changed, when there is no such function or it takes
    other parameters.
    """
    original = getattr(owner, name, None)
    if not callable(original):
        raise _mismatch(owner, name, parameters, "nothing to call")
    found = inspect.signature(original).parameters
    known = parameters.split()
    new = [each for each in found.values() if each.name not in known]
    if [each for each in found if each in known] != known or not all(map(_is_optional, new)):
        raise _mismatch(owner, name, parameters, f"({', '.join(found)})")
    setattr(owner, name, make(original))


def _is_optional(parameter: inspect.Parameter) -> bool:
    is_rest = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return is_rest or parameter.default is not parameter.empty


def _mismatch(owner: Any, name: str, parameters: str, got: str) -> DeviceError:
    where = owner.__name__
    if isinstance(owner, type):
        where = f"{owner.__module__}.{where}"
    return DeviceError(
        f"[mlx-lm] needed {where}.{name}({', '.join(parameters.split())}) as mlx-lm "
        f"{KNOWN_VERSIONS} has it, got {got} in mlx-lm {_installed()}. Install one of these: "
        f"pip install 'mlx-lm{KNOWN_VERSIONS}'. Our own load, generate, chat and convert go on "
        "working with this one."
    )


def _installed() -> str:
    try:
        return version("mlx-lm")
    except PackageNotFoundError:
        return "of unknown version"
