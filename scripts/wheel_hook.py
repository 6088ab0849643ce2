"""Put the native library into a wheel: HLWQ_WHEEL_NATIVE=1 pip wheel --no-deps .

Such a wheel needs no compiler where it is installed, and is for machines like this one alone. With
another processor, system or version of the source, the library is compiled there as ever.
"""

import os
import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

SWITCH = "HLWQ_WHEEL_NATIVE"


class NativeLibrary(BuildHookInterface[Any]):
    """Called by hatchling before it writes a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the library, compiled unless this machine's cache has it.

        Raises: DeviceError without a compiler.
        """
        if os.environ.get(SWITCH) != "1" or version == "editable":
            return
        sys.path.insert(0, self.root)
        from hlwq_mlx.quant.backends.native import build

        library = build.build()
        for path in (library, build.sum_path(library)):
            inside = build.shipped_path().with_name(path.name).relative_to(self.root)
            build_data["force_include"][str(path)] = str(inside)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{next(platform_tags())}"
