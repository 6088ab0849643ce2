"""Make stock mlx-lm load our model type, in this process, by `import hlwq_mlx` alone.

mlx-lm has no registry: it imports `mlx_lm.models.<model type>`, and builds the model from its
config without a word about where the folder is. So a finder answers for that one module name, and
`mlx_lm.utils.load_config` is wrapped to add the folder to what it returns. Nothing is imported
before mlx-lm asks. `register` makes this permanent for an environment. An mlx-lm whose
`load_config` is another goes on loading other models; loading one of our folders then fails with a
line that names the versions we know.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import DeviceError

MODEL_TYPE = "hlwq_gemma4"
FOLDER_KEY = "hlwq_folder"
PROCESSOR_KEY = "processor_type"  # which of mlx_lm.processors takes the prompt's images
_MODEL_MODULE = f"mlx_lm.models.{MODEL_TYPE}"
_UTILS_MODULE = "mlx_lm.utils"
_mismatches: list[DeviceError] = []  # why `load_config` was left as it is


class _ModelLoader(Loader):
    """Fills the module that mlx-lm asks for from `stock`."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        from . import model as stock

        for name in stock.__all__:
            setattr(module, name, getattr(stock, name))


class _UtilsLoader(Loader):
    """Loads mlx-lm's own module and wraps one function of it."""

    def __init__(self, original: Loader) -> None:
        self._original = original

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._original.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._original.exec_module(module)
        patch_load_config(module)


class Finder(MetaPathFinder):
    """Answers for our model's module and for mlx-lm's loading module, and for nothing else."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname == _MODEL_MODULE:
            return importlib.util.spec_from_loader(fullname, _ModelLoader())
        if fullname == _UTILS_MODULE:
            spec = PathFinder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _UtilsLoader(spec.loader)
            return spec
        return None


def patch_load_config(utils: ModuleType) -> None:
    """Wrap `load_config` of mlx_lm.utils, which then adds its folder and processor to our config.

    A mismatch is kept for `require_patched`: who loads other models has no use for it.
    """
    from .patches import replace  # its imports would slow down every command that has no mlx-lm

    try:
        replace(utils, "load_config", "model_path", _telling_folder)
    except DeviceError as problem:
        _mismatches.append(problem)


def require_patched() -> None:
    """Raise why mlx-lm's `load_config` could not be wrapped.

    Raises: DeviceError that names the known versions.
    """
    if _mismatches:
        raise _mismatches[-1]


def _telling_folder(original: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    @wraps(original)
    def load_config(model_path: Path, *more: Any, **options: Any) -> dict[str, Any]:
        config = original(model_path, *more, **options)
        if config.get("model_type") == MODEL_TYPE:
            config |= {FOLDER_KEY: str(model_path), PROCESSOR_KEY: MODEL_TYPE}
        return config

    return load_config


def install() -> None:
    """Make stock mlx-lm load our folders in this process; a second call changes nothing."""
    if any(isinstance(finder, Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, Finder())
    if _UTILS_MODULE in sys.modules:
        patch_load_config(sys.modules[_UTILS_MODULE])
