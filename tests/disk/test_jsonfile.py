"""JSON of strangers: each way in which a file is none, or more than a reader should take."""

import json
import subprocess
import sys

import pytest

from hlwq_mlx.disk.jsonfile import MOST_BYTES, MOST_LEVELS, parse_json, read_json
from hlwq_mlx.errors import SourceError


def nested(levels):
    return b'{"a": ' + b"[" * levels + b"]" * levels + b"}"


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "Expecting value"),
        (b"[]", "a list"),
        (b"null", "a NoneType"),
        (b"{'a': 1}", "Expecting property name"),
        (b'{"a": 1', "Expecting ',' delimiter"),
        (b'{"a": "\xff"}', "'utf-8' codec can't decode"),
        ('{"a": 1}'.encode("utf-16"), "'utf-8' codec can't decode"),
        (b'{"a": NaN}', "NaN, which is no finite number"),
        (b'{"a": [-Infinity]}', "-Infinity, which is no finite number"),
        (b'{"a": 1e999}', "1e999, which is no finite number"),
        (b'{"a": ' + b"7" * 5000 + b"}", "Exceeds the limit"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' twice in one object"),
        (b'{"a": {"b": 2, "b": 2}}', "the key 'b' twice in one object"),
        (nested(MOST_LEVELS), "values nested deeper than 64 levels"),
        (nested(900), "values nested deeper than 64 levels"),
        (nested(100_000), "values nested deeper than 64 levels"),
        (b'{"a": "' + b"x" * MOST_BYTES + b'"}', "more than 8,388,608 bytes"),
    ],
    ids=range(17),
)
def test_what_is_no_plain_json_object_is_refused_in_a_line(content, got, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        read_json(path)
    message = str(caught.value)
    assert message.startswith(f"[config.json] needed a JSON object in {path}, got {got}")
    assert len(message.splitlines()) == 1
    assert len(message) < 400


@pytest.mark.parametrize("content", [b'{"a": 1e30}', b'\xef\xbb\xbf{"a": 1e30}'])
def test_an_object_is_read(content):
    assert parse_json(content, "a.json", "here") == {"a": 1e30}


def test_levels_that_a_file_may_have_are_read():
    assert json.dumps(parse_json(nested(MOST_LEVELS - 2), "a.json", "here"))


def test_another_bound_may_be_given(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": 1}')
    assert read_json(path, 8) == {"a": 1}
    with pytest.raises(SourceError, match="more than 7 bytes"):
        read_json(path, 7)


def test_a_directory_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"needed a regular file, got a folder at "):
        read_json(tmp_path)


READ = """
import resource, sys
from pathlib import Path
from hlwq_mlx.errors import SourceError
from hlwq_mlx.disk.jsonfile import read_json
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_json(Path(sys.argv[1]))
except SourceError:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * int(sys.argv[2]))
"""


def test_a_file_of_gigabytes_takes_no_memory(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(4 << 30)  # a hole: no disk is taken
    unit = 1 if sys.platform == "darwin" else 1024
    child = subprocess.run(
        [sys.executable, "-c", READ, str(path), str(unit)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(child.stdout) < 64 << 20
