"""The workflow for a lent Mac, as far as Linux can try it: what it calls is there."""

import os
import shlex
from pathlib import Path

import yaml

from scripts.mac import mac_report

ROOT = Path(__file__).parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "macos.yml").read_text())
(JOB,) = WORKFLOW["jobs"].values()
CALLS = [shlex.split(step["run"]) for step in JOB["steps"] if "run" in step]


def test_it_runs_the_gate_and_the_quick_run_on_an_arm64_mac():
    assert CALLS == [["scripts/check"], ["scripts/first_mac_run", "--quick"]]
    assert int(JOB["runs-on"].removeprefix("macos-")) >= 14  # those before are Intel's
    assert set(WORKFLOW[True]) == {"workflow_dispatch", "push"}  # YAML reads `on` as true


def test_what_it_calls_exists():
    for script, *_ in CALLS:
        path = ROOT / script
        assert path.read_text().startswith("#!/usr/bin/env bash\n")
        assert os.access(path, os.X_OK)


def test_its_options_and_its_artifact_are_those_of_the_script():
    arguments = mac_report.make_parser().parse_args(CALLS[1][1:])
    assert arguments.quick
    (path,) = [step["with"]["path"] for step in JOB["steps"] if "upload" in step.get("uses", "")]
    assert arguments.output == Path(path)
