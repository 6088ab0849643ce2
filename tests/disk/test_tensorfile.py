"""Our reader against the library's writer, our writer against the library's reader."""

import json
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hlwq_mlx.disk.tensorfile import TensorFile, TensorSpec, TensorWriter
from hlwq_mlx.errors import CheckpointError, DeviceError, SourceError

TENSORS = {
    "bytes": np.arange(5, dtype=np.uint8),
    "signed": np.array([-128, 127], dtype=np.int8),
    "half": np.array([[0.5, -2], [65504, 6e-8]], dtype=np.float16),
    "single": np.arange(6, dtype=np.float32).reshape(1, 2, 3),
    "words": np.array([[0, 2**32 - 1]], dtype=np.uint32),
    "meta": np.array([1, -(2**62)], dtype=np.int64),
    "scalar": np.array(3.25, dtype=np.float32),
    "empty": np.zeros((0, 4), dtype=np.float16),
}


def assert_same(got, wanted):
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    np.testing.assert_array_equal(got, wanted)


def specs():
    numpy_names = {"uint8": "U8", "int8": "I8", "float16": "F16", "float32": "F32"}
    numpy_names |= {"uint32": "U32", "int64": "I64"}
    return {
        name: TensorSpec(numpy_names[tensor.dtype.name], tensor.shape)
        for name, tensor in TENSORS.items()
    }


def test_reads_what_the_library_writes(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    file = TensorFile(tmp_path / "a.safetensors")
    assert file.specs == specs()
    assert list(file.specs) == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        assert_same(file.view(name), tensor)


def test_views_share_the_file_and_cannot_be_written(tmp_path):
    save_file({"a": np.arange(4, dtype=np.float32)}, tmp_path / "a.safetensors")
    view = TensorFile(tmp_path / "a.safetensors").view("a")
    assert not view.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1


def test_bfloat16_is_seen_as_its_bits(tmp_path):
    mx.save_safetensors(str(tmp_path / "a.safetensors"), {"a": mx.array([1.0, -2.5], mx.bfloat16)})
    file = TensorFile(tmp_path / "a.safetensors")
    assert file.metadata == {}
    assert file.specs["a"] == TensorSpec("BF16", (2,))
    assert_same(file.view("a"), np.array([0x3F80, 0xC020], dtype=np.uint16))


def test_a_misaligned_tensor_is_read(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * (3 - len(header) % 4)  # the data begins at an odd place
    values = np.array([1.5, -7], dtype=np.float32)
    raw = len(header).to_bytes(8, "little") + header + values.tobytes()
    (tmp_path / "a.safetensors").write_bytes(raw)
    assert_same(TensorFile(tmp_path / "a.safetensors").view("a"), values)


@pytest.mark.parametrize("cut", [0, 4, 8, 60, -1])
def test_a_cut_off_file_is_refused(tmp_path, cut):
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"\[a.safetensors\] needed a whole safetensors file"):
        TensorFile(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"needed to read .*b.safetensors, got 'No such"):
        TensorFile(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("dtype", "size", "message"),
    [
        ("BOOL", 1, r"needed a dtype of BF16, .*, got BOOL for odd\. Store the tensor as BF16"),
        ("NEW", 1, r"needed a whole safetensors file"),
    ],
)
def test_an_unknown_dtype_is_refused(tmp_path, dtype, size, message):
    entry = {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}
    header = json.dumps({"odd": entry}).encode()
    raw = len(header).to_bytes(8, "little") + header + b"\0" * size
    (tmp_path / "a.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match=message):
        TensorFile(tmp_path / "a.safetensors")


def write_in_pieces(path):
    """Write every tensor one element at a time, the last one first."""
    with TensorWriter(path, specs()) as writer:
        for name in reversed(TENSORS):
            flat = TENSORS[name].reshape(-1)
            for i in reversed(range(flat.size)):
                assert writer.write(name, flat[i : i + 1], i * flat.itemsize) == flat.itemsize


def test_the_library_reads_what_was_written_in_pieces(tmp_path):
    write_in_pieces(tmp_path / "a.safetensors")
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert_same(loaded[name], tensor)


def test_mlx_reads_what_was_written(tmp_path):
    write_in_pieces(tmp_path / "a.safetensors")
    loaded, metadata = mx.load(str(tmp_path / "a.safetensors"), return_metadata=True)
    assert metadata == {"format": "mlx"}
    for name, tensor in TENSORS.items():
        assert_same(np.array(loaded[name]), tensor)


def test_metadata_is_written_and_read(tmp_path):
    with TensorWriter(tmp_path / "a", {}, {"more": "1"}):
        pass
    assert TensorFile(tmp_path / "a").metadata == {"format": "mlx", "more": "1"}


def test_every_tensor_is_aligned(tmp_path):
    write_in_pieces(tmp_path / "a.safetensors")
    file = TensorFile(tmp_path / "a.safetensors")
    for name in TENSORS:
        assert not file.view(name).flags.owndata, name


def test_a_transposed_piece_is_written_in_order(tmp_path):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    with TensorWriter(tmp_path / "a", {"a": TensorSpec("F32", (3, 2))}) as writer:
        writer.write("a", matrix.T)
    assert_same(TensorFile(tmp_path / "a").view("a"), matrix.T)


@pytest.mark.parametrize("at", [-1, 1, 4])
def test_a_piece_outside_its_tensor_is_refused(tmp_path, at):
    with (
        TensorWriter(tmp_path / "a", {"a": TensorSpec("F32", (1,))}) as writer,
        pytest.raises(CheckpointError, match=rf"inside the 4 bytes of a, got 4 bytes at {at}\."),
    ):
        writer.write("a", np.zeros(1, dtype=np.float32), at)


def test_an_existing_file_is_not_overwritten(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(DeviceError, match="File exists"):
        TensorWriter(tmp_path / "a", {})
    assert (tmp_path / "a").read_text() == "mine"


LIMITED = """
import pathlib, resource, sys, warnings
import numpy as np
from hlwq_mlx.errors import DeviceError
from hlwq_mlx.disk.tensorfile import TensorSpec, TensorWriter
warnings.simplefilter("error")
path, limit, size = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
spec = {"a": TensorSpec("U8", (size,))}
if limit < size:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with TensorWriter(path, spec) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        writer.write("a", np.ones(size, np.uint8))
except DeviceError as problem:
    print(problem)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX resource limits")
@pytest.mark.parametrize("limit", [100, 1 << 30], ids=["when opened", "when written"])
def test_a_full_disk_is_a_device_error(tmp_path, limit):
    arguments = [str(tmp_path / "a"), str(limit), "100000"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("[a] needed 100,")
    assert "got 'File too large'. Choose a folder where larger files are allowed." in done.stdout
    assert done.stderr == ""
