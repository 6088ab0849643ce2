"""Python environments that see this one's packages; what a test installs there stays there."""

import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any


def make(folder: Path) -> Path:
    """Make an environment; its own site-packages come before this one's."""
    venv.create(folder, symlinks=True)
    parents = [path for path in sys.path if path.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({path!r})" for path in parents]
    (site_packages(folder) / "parent.pth").write_text("\n".join(lines) + "\n")
    return folder


def site_packages(environment: Path) -> Path:
    return next(environment.glob("lib/python*/site-packages"))


def run(environment: Path, *arguments: str, stdin: str = "") -> Any:
    """Run the environment's Python from a folder that holds no package."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(environment / "bin" / "python"), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        env=variables,
        cwd=environment,
        check=False,
    )
