"""One node of the prefix cache as one safetensors file, with a checksum of all that it says."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..disk.tensorfile import TensorFile, TensorSpec, TensorWriter
from ..errors import CheckpointError
from ..gemma4.caches import Arrays
from .prefix_cache import Layers, Node

FORMAT = "hlwq-prefix-1"
_FORMAT, _CHECKSUM = "format", "checksum"
_KEYS, _RANGES, _STATE = "keys", "ranges", "state"
_DTYPES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32"}


class Header(NamedTuple):
    """What a file says of its node: `id` is a digest of all that its arrays follow from.

    `parent` is the id of the node that ends at `start`, empty at 0; `written` is in seconds.
    """

    id: str
    parent: str
    start: int
    end: int
    has_state: bool
    written: int

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        start, end = int(metadata["start"]), int(metadata["end"])
        has_state, written = metadata["has_state"] == "True", int(metadata["written"])
        return cls(metadata["id"], metadata["parent"], start, end, has_state, written)

    def metadata(self) -> dict[str, str]:
        return {name: str(value) for name, value in self._asdict().items()}


class HostArray(NamedTuple):
    """An array in the host's memory; of bfloat16, which numpy has not, the bits."""

    dtype: str
    values: NDArray[Any]


def host_arrays(node: Node, with_state: bool) -> dict[str, HostArray]:
    """Copy a node's arrays to the host's memory, so that another thread can write them."""
    arrays = {_KEYS: HostArray("I64", node.keys)}
    state = node.state or () if with_state else ()
    for kind, layers in ((_RANGES, node.ranges), (_STATE, state)):
        for i, parts in enumerate(layers):
            for j, part in enumerate(parts):
                bits = part.view(mx.uint16) if part.dtype == mx.bfloat16 else part
                arrays[f"{kind}.{i}.{j}"] = HostArray(_DTYPES[part.dtype], np.array(bits))
    return arrays


def write(
    path: Path, header: Header, origin: Mapping[str, str], arrays: Mapping[str, HostArray]
) -> None:
    """Write a new file.

    Raises: DeviceError for the disk; CheckpointError for numbers that are not finite.
    """
    metadata = {_FORMAT: FORMAT, **origin, **header.metadata()}
    metadata[_CHECKSUM] = _checksum(metadata, {name: each.values for name, each in arrays.items()})
    specs = {name: TensorSpec(each.dtype, each.values.shape) for name, each in arrays.items()}
    with TensorWriter(path, specs, metadata) as writer:
        for name, each in arrays.items():
            writer.write(name, each.values)


def read_header(path: Path) -> Header:
    """Read what a file says, without its arrays.

    Raises: CheckpointError for a file that is not whole or no node; SourceError for one that
    cannot be read.
    """
    return _header(TensorFile(path))


def read_node(path: Path) -> Node:
    """Read a file and compare it with its checksum.

    Raises: as `read_header`, and CheckpointError for bytes that differ.
    """
    file = TensorFile(path)
    header = _header(file)
    views = {name: file.view(name) for name in file.specs}
    if file.metadata.get(_CHECKSUM) != _checksum(file.metadata, views):
        raise _not_a_node(path, "bytes that differ from the checksum")
    arrays = {name: _to_mlx(file.specs[name].dtype, view) for name, view in views.items()}
    return Node(
        np.array(views[_KEYS]),
        header.end,
        _layers(arrays, _RANGES),
        _layers(arrays, _STATE) if header.has_state else None,
        is_saved=header.has_state,
    )


def _header(file: TensorFile) -> Header:
    try:
        header = Header.from_metadata(file.metadata)
        is_node = file.metadata[_FORMAT] == FORMAT
        is_node &= file.specs[_KEYS] == TensorSpec("I64", (header.end - header.start,))
    except (KeyError, ValueError, AttributeError) as problem:
        raise _not_a_node(file.path, "other metadata") from problem
    if not is_node:
        raise _not_a_node(file.path, "another format")
    return header


def _not_a_node(path: Path, got: str) -> CheckpointError:
    return CheckpointError(
        f"[{path.name}] needed a prefix in the format {FORMAT}, got {got} in {path}. Remove it."
    )


def _checksum(metadata: Mapping[str, str], arrays: Mapping[str, NDArray[Any]]) -> str:
    stated = {name: value for name, value in metadata.items() if name != _CHECKSUM}
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _to_mlx(dtype: str, view: NDArray[Any]) -> mx.array:
    array = mx.array(view)
    return array.view(mx.bfloat16) if dtype == "BF16" else array


def _layers(arrays: Mapping[str, mx.array], kind: str) -> Layers:
    """Return the arrays of a kind by layer and part."""
    layers: dict[int, dict[int, mx.array]] = {}
    for name, array in arrays.items():
        if name.startswith(f"{kind}."):
            _, i, j = name.split(".")
            layers.setdefault(int(i), {})[int(j)] = array
    return tuple(_in_order(layers[i]) for i in sorted(layers))


def _in_order(parts: Mapping[int, mx.array]) -> Arrays:
    return tuple(parts[j] for j in sorted(parts))
