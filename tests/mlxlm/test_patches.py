"""What we replace in mlx-lm is checked first: a guard is never lost without a word."""

import tomllib
from pathlib import Path
from types import ModuleType

import demo
import mlx_lm
import pytest
from mlx_lm import server as original

from hlwq_mlx.errors import DeviceError
from hlwq_mlx.folder.folder import Folder
from hlwq_mlx.gemma4.caches import WHOLE
from hlwq_mlx.mlxlm import patches, plugin, server
from hlwq_mlx.mlxlm.model import ModelArgs

REPLACED = [
    *("load", "_run_http_server", "make_sampler", "Response"),
    *("_image_url", "_inline_image_urls", "_decode_image", "_make_vision"),
    *("ResponseGenerator._tokenize", "ModelProvider.load"),
    *("APIHandler.validate_model_parameters", "APIHandler.do_POST"),
    "APIHandler.handle_models_request",
]


@pytest.fixture
def stand_in(monkeypatch):
    """A module with the functions of mlx-lm's server, which only notes that it is run."""
    module = ModuleType("mlx_lm.server")
    vars(module).update(vars(original))
    for name in ("ResponseGenerator", "ModelProvider", "APIHandler"):
        setattr(module, name, type(name, (getattr(original, name),), {}))
    module.runs = []
    module.main = lambda: module.runs.append(True)
    monkeypatch.setattr(server, "server", module)
    monkeypatch.setattr("sys.argv", [])
    return module


def serve():
    server.run(Folder.open(demo.folder()), caching=WHOLE, context=9, http=False, options=[])


def find(module, path):
    """Return the owner of a function and the function's name in it."""
    *names, name = path.split(".")
    return (getattr(module, names[0]) if names else module), name


def test_the_server_is_run_when_all_is_as_known(stand_in):
    serve()
    assert stand_in.runs == [True]
    for path in REPLACED:
        assert getattr(*find(stand_in, path)) is not getattr(*find(original, path)), path


@pytest.mark.parametrize("path", REPLACED)
@pytest.mark.parametrize("other", [None, lambda changed: None], ids=["missing", "changed"])
def test_the_server_is_not_run_without_a_guard(stand_in, path, other):
    setattr(*find(stand_in, path), other)
    got = r"nothing to call" if other is None else r"\(changed\)"
    with pytest.raises(DeviceError, match=rf"{path}\(.*, got {got} in mlx-lm \d.*Install one of"):
        serve()
    assert stand_in.runs == []


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
