"""What we replace in mlx-lm is checked first: a guard is never lost without a word."""

import tomllib
from pathlib import Path
from types import ModuleType

import demo
import mlx_lm
import pytest

from hlwq_mlx.errors import DeviceError
from hlwq_mlx.mlxlm import patches, plugin
from hlwq_mlx.mlxlm.model import ModelArgs


class Owner:
    """Stands in for a module or class of mlx-lm."""

    def find(self, name, more=0):
        return name


@pytest.mark.parametrize("other", [None, lambda changed: None], ids=["missing", "changed"])
def test_what_is_not_as_known_is_not_replaced(other):
    owner = type("Owner", (Owner,), {"find": other})
    got = r"nothing to call" if other is None else r"\(changed\)"
    with pytest.raises(
        DeviceError, match=rf"Owner\.find\(.*, got {got} in mlx-lm \d.*Install one of"
    ):
        patches.replace(owner, "find", "self name", lambda old: lambda *given: "replaced")
    assert owner.find is other


def test_an_option_more_is_passed_on():
    module = ModuleType("module")
    module.twice = lambda number, more=0: 2 * number + more
    patches.replace(module, "twice", "number", lambda old: lambda *given: old(*given) + 100)
    assert module.twice(2, 1) == 105


def other_load_config(path):
    return {"model_type": plugin.MODEL_TYPE}


@pytest.mark.parametrize("other", [None, other_load_config])
def test_an_unknown_load_config_stays_as_it_is(monkeypatch, other):
    """Other models load as before; one of ours says which versions are known."""
    monkeypatch.setattr(plugin, "_mismatches", [])
    utils = ModuleType("mlx_lm.utils")
    utils.load_config = other
    plugin.patch_load_config(utils)
    assert utils.load_config is other
    with pytest.raises(DeviceError, match=r"utils\.load_config\(model_path\) as mlx-lm >=0\.3"):
        ModelArgs.from_dict({"model_type": plugin.MODEL_TYPE})


def test_stock_mlx_lm_tells_of_the_mismatch(monkeypatch):
    stock = mlx_lm.utils.load_config.__wrapped__
    monkeypatch.setattr(plugin, "_mismatches", [])
    monkeypatch.setattr(mlx_lm.utils, "load_config", lambda path: stock(path))
    plugin.patch_load_config(mlx_lm.utils)
    with pytest.raises(DeviceError, match="Our own load, generate, chat and convert go on work"):
        mlx_lm.load(str(demo.folder()))


def test_the_known_versions_are_those_of_the_package():
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())
    assert f"mlx-lm{patches.KNOWN_VERSIONS}" in project["project"]["dependencies"]
