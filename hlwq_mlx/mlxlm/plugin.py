"""How stock mlx-lm comes to know our model type: for this process, by `import hlwq_mlx`.

mlx-lm has no registry: it imports `mlx_lm.models.<model type>`, and builds the model from its
config without a word about where the folder is. So a finder answers for that one module name, and
`mlx_lm.utils.load_config` is wrapped to add the folder to what it returns. Nothing is imported
before mlx-lm asks. `register` makes this permanent for an environment.
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

MODEL_TYPE = "hlwq_gemma4"
FOLDER_KEY = "hlwq_folder"
PROCESSOR_KEY = "processor_type"  # which of mlx_lm.processors takes the prompt's images
_MODEL_MODULE = f"mlx_lm.models.{MODEL_TYPE}"
_UTILS_MODULE = "mlx_lm.utils"


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
        tell_folder(module)


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


def tell_folder(utils: ModuleType) -> None:
    """Wrap `load_config` of mlx_lm.utils so that a config of ours says where it lies and whose
    processor it takes.
    """
    original: Callable[..., dict[str, Any]] = utils.load_config

    @wraps(original)
    def load_config(model_path: Path) -> dict[str, Any]:
        config = original(model_path)
        if config.get("model_type") == MODEL_TYPE:
            config |= {FOLDER_KEY: str(model_path), PROCESSOR_KEY: MODEL_TYPE}
        return config

    utils.load_config = load_config  # type: ignore[attr-defined]


def install() -> None:
    """Make stock mlx-lm load our folders in this process; a second call changes nothing."""
    if any(isinstance(finder, Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, Finder())
    if _UTILS_MODULE in sys.modules:
        tell_folder(sys.modules[_UTILS_MODULE])
