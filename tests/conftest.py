import os

import pytest

from hlwq_mlx.library import CACHE_VARIABLE


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_session(tmp_path_factory):
    """Keep converted models of the tests apart from a person's, for sub-processes too."""
    os.environ[CACHE_VARIABLE] = str(tmp_path_factory.mktemp("cache"))
