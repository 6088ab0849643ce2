"""The first run on a Mac: try everything that was written without one, and write down what happens.

    scripts/first_mac_run [--quick] [--model MODEL] [--variant PQ5] [--prompt TEXT ...]
                          [--output FOLDER]

Writes FOLDER/mac-report.md, for a person to read and send back, and mac-report.json, with all
numbers. Both are written again after every step, so that a crash leaves what came before, and hold
neither paths nor names of people or machines. A step that fails is part of the report; one that
takes more than its share of ten minutes, or of two with --quick, leaves its last cases out. What
was found best is in FOLDER/chips.json, which may take the place of hlwq_mlx/quant/chips.json.
"""

import argparse
import getpass
import json
import math
import os
import platform
import re
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx

from hlwq_mlx.quant import device as computer
from hlwq_mlx.quant import selftest
from hlwq_mlx.quant.backends.base import Product
from hlwq_mlx.quant.chips import chips
from scripts.mac import mac_steps, new_table
from scripts.mac.sizes import FULL, QUICK, REHEARSAL, Sizes

TESTS = Path(__file__).parents[2] / "tests"
NAME = "mac-report"
TABLE = "What was found best for this chip: chips.json"
PACKAGES = ("hlwq-mlx", "mlx", "mlx-lm", "numpy", "transformers")
PATH = re.compile(r"(?<![\w.])~?/(?:[^\s'\"`,:;()<>|]+/)+[^\s'\"`,:;()<>|]*")
COMMON = {"", "root", "user", "localhost"}


def machine() -> dict[str, Any]:
    """Describe the machine without naming it."""
    device = {key: value for key, value in mx.device_info().items() if key != "hostname"}
    return {
        "chip": _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine(),
        "model": _sysctl("hw.model"),
        "system": f"macOS {platform.mac_ver()[0]}" if _is_mac() else platform.system(),
        "python": platform.python_version(),
        "metal": mx.metal.is_available(),
        "device": device,
        "versions": {package: _version(package) for package in PACKAGES},
    }


def _is_mac() -> bool:
    return sys.platform == "darwin"


def _sysctl(name: str) -> str:
    if not _is_mac():
        return ""
    ran = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return ran.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def scrubbed(value: Any) -> Any:
    """Return a value of JSON without paths and without the names of the user and the machine."""
    if isinstance(value, dict):
        return {scrubbed(key): scrubbed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [scrubbed(item) for item in value]
    if not isinstance(value, str):
        return value
    # A home with a space in its name would end the path too early.
    text = PATH.sub(_shortened, value.replace(f"{Path.home()}/", "/home/"))
    names = {getpass.getuser(), Path.home().name, socket.gethostname()} - COMMON
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "<name>", text)
    return text


def _shortened(path: re.Match[str]) -> str:
    """Keep what a traceback is read for."""
    return f"<path>/{Path(path[0]).name}" if path[0].endswith(".py") else "<path>"


def run_step(run: Any, limit: float = math.inf) -> dict[str, Any]:
    """Run a step to its end, its error or its limit in seconds; return the rows it had by then."""
    begun = time.perf_counter()
    rows: list[mac_steps.Row] = []
    error = ""
    try:
        for row in run():
            rows.append(row)
            if time.perf_counter() - begun > limit:
                rows.append({"left out": f"the rest, after {limit:.0f} s"})
                break
    except Exception as problem:  # noqa: BLE001 - whatever it is, it belongs into the report
        error = "".join(traceback.format_exception(problem))
    return {"rows": rows, "error": error, "seconds": time.perf_counter() - begun}


def markdown(report: dict[str, Any]) -> str:
    """Write a report for a person to read."""
    lines = ["# hlwq_mlx on a Mac", ""]
    if report["rehearsal"]:
        lines += ["**A rehearsal: tiny sizes, no GPU. No number here means anything.**", ""]
    for key, value in report["machine"].items():
        shown = (
            ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        )
        lines.append(f"- {key}: {shown}")
    lines.append(f"- asked for: {report['model'] or 'no model'}{', quick' * report['quick']}")
    for name, step in report["steps"].items():
        lines += ["", f"## {name}", "", f"{step['seconds']:.1f} s", ""]
        lines += _table(step["rows"])
        if step["error"]:
            lines += ["", "Failed:", "", "```", step["error"].rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns = [key for key in columns if not any(isinstance(row.get(key), dict) for row in rows)]
    if columns:
        yield f"| {' | '.join(columns)} |"
        yield "|" + "---|" * len(columns)
    for row in rows:
        yield f"| {' | '.join(_cell(row.get(key)) for key in columns)} |"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    return " ".join(str(value).replace("|", "\\|").split())


def save(report: dict[str, Any], folder: Path) -> None:
    """Write both files; each is replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    clean = scrubbed(report)
    texts = {"json": json.dumps(clean, indent=1, default=str) + "\n", "md": markdown(clean)}
    for suffix, text in texts.items():
        partial = folder / f".{NAME}.{suffix}.{os.getpid()}"
        partial.write_text(text)
        partial.replace(folder / f"{NAME}.{suffix}")


@contextmanager
def rehearsing() -> Iterator[None]:
    """Run kernels within the block on the Metal host of the tests, as if this were an M1."""
    sys.path.insert(0, str(TESTS))
    from metal_host import Checks, device

    selftest.forget()
    try:
        with (
            device(Checks(is_watched=False)),
            mock.patch.object(computer, "has_metal", lambda: True),
            mock.patch.object(computer, "chip", lambda: chips()["M1"]),
            mock.patch.object(Product, "is_lazy", False),  # the host computes at once
        ):
            yield
    finally:
        selftest.forget()
        sys.path.remove(str(TESTS))


def explore(sizes: Sizes, arguments: argparse.Namespace) -> dict[str, Any]:
    """Take every step, writing the report after each."""
    model = arguments.model
    is_local = model is not None and Path(model).expanduser().exists()
    report: dict[str, Any] = {
        "rehearsal": arguments.rehearse,
        "quick": arguments.quick,
        "machine": machine(),
        "model": model and f"{'a local folder' if is_local else model}, {arguments.variant}",
        "steps": {},
    }
    save(report, arguments.output)
    if arguments.prompt:
        sizes = replace(sizes, prompts=tuple(arguments.prompt))
    steps = mac_steps.steps(sizes, model, arguments.variant)
    limits = mac_steps.limits(list(steps), sizes.seconds)
    spare = 0.0
    for name, run in {**steps, TABLE: lambda: new_table_of(report, arguments.output)}.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        limit = limits[name] + spare if name in limits else math.inf
        step = run_step(run, limit)
        spare = max(0.0, limit - step["seconds"]) if name in limits else spare
        report["steps"][name] = step
        save(report, arguments.output)
        outcome = "failed, see the report" if step["error"] else f"{len(step['rows'])} rows"
        print(f"  {outcome}, {step['seconds']:.0f} s", file=sys.stderr, flush=True)
    return report


def new_table_of(report: dict[str, Any], folder: Path) -> Iterator[mac_steps.Row]:
    """Write the table of chips with what the steps found."""
    names = {"rows": mac_steps.ROWS, "tiles": mac_steps.TILES, "many": mac_steps.MANY}
    found = {
        key: report["steps"][name]["rows"] for key, name in names.items() if name in report["steps"]
    }
    name = str(mx.device_info().get("device_name", "this chip")).removeprefix("Apple ")
    file = "rehearsal-chips.json" if report["rehearsal"] else "chips.json"
    return new_table.table_step(name, computer.chip(), found, folder / file)


def make_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="scripts/first_mac_run", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--model", help="a model to convert and ask, as for hlwq_mlx.generate")
    parser.add_argument("--variant", default="PQ5", help="its variant (default: PQ5)")
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="ask this, as a prompt on the model's card; repeat it for more "
        "(default: the card's three)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/mac-report"),
        metavar="FOLDER",
        help="where the report is written (default: build/mac-report)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="the essential alone: fewer shapes, fewer rounds"
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="try this script itself, anywhere: every step in tiny sizes, which --quick has too",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; 1 if a step failed, 2 if there is nothing to run on."""
    arguments = make_parser().parse_args(argv)
    if arguments.rehearse:
        with rehearsing():
            report = explore(REHEARSAL, arguments)
    elif mx.metal.is_available():
        report = explore(QUICK if arguments.quick else FULL, arguments)
    else:
        print(
            f"error: [first_mac_run] needed a Mac with Metal, got {platform.system()} without. "
            "Try --rehearse here.",
            file=sys.stderr,
        )
        return 2
    print(f"Please send back {arguments.output / NAME}.md and {NAME}.json.")
    return int(any(step["error"] for step in report["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
