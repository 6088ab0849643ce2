"""Layers whose weight stays coded: what nn.Linear and nn.Embedding become in an HLWQ model.

Their parameters are the arrays on disk (`codes`, `norms`, `centroids`, and `means` where a matrix
has them) and load strictly. A backend's product is a plain object beside the parameters. It is made
by `prepare()` or at the first call, and made again when other parameters are loaded. The codes
stay, because `HLWQEmbedding` reads its rows from them and a model can be saved after it has run.
The manifest, not this file, says which modules are coded.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from operator import is_
from typing import Any, Generic, TypeVar

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_map_with_path
from numpy.typing import NDArray

from ..errors import CheckpointError, ShapeError
from . import codec
from .activation import Activation, Input
from .backends import choose
from .backends.base import ExpertProduct, Prepared, Product
from .backends.native.library import native_library
from .kernels import MIN_ENTRIES
from .matrix import CodedMatrix
from .means import ExpertsWithMeans, WithMeans, add_to_rows
from .packing import BLOCK, UNIT

T = TypeVar("T")
_PARAMETERS = ("codes", "norms", "centroids", "means")


class _Made(Generic[T]):
    """A value made from a layer's parameters, kept until other parameters are loaded."""

    def __init__(self) -> None:
        self._kept: tuple[list[mx.array], T] | None = None

    def get(self, make: Callable[[CodedMatrix], T], layer: "CodedLayer") -> T:
        """Return `make(layer.matrix)`, or the last result if it was made from these very arrays."""
        if self._kept is None or not layer.has(self._kept[0]):
            self._kept = layer.arrays, make(layer.matrix)
        return self._kept[1]


class CodedLayer(nn.Module):
    """The base of coded layers: their parameters, and the product made from them."""

    def __init__(self, rows: int, columns: int, code_bits: int) -> None:
        super().__init__()
        blocks = -(-columns // BLOCK)
        self.columns = columns
        self.code_bits = code_bits
        self.codes = mx.zeros((rows, blocks * BLOCK * code_bits // UNIT), dtype=mx.uint32)
        self.norms = mx.zeros((rows, blocks), dtype=mx.float16)
        self.centroids = mx.zeros((max(MIN_ENTRIES, 1 << code_bits),))

    @property
    def matrix(self) -> CodedMatrix:
        """The parameters as one matrix, the padding columns included."""
        return CodedMatrix(self.codes, self.norms, self.centroids, self.code_bits)

    @property
    def arrays(self) -> list[mx.array]:
        """The parameters that a product is made from."""
        return [self[name] for name in _PARAMETERS if name in self]

    def has(self, arrays: list[mx.array]) -> bool:
        """Return whether these are the layer's very arrays."""
        own = self.arrays
        return len(own) == len(arrays) and all(map(is_, own, arrays))

    def add_means(self) -> None:
        """Add means of blocks to the parameters."""
        self.means = mx.zeros(self.norms.shape, dtype=mx.float16)

    def prepare(self) -> Prepared:
        """Return the product, made now unless it was made from these very parameters."""
        raise NotImplementedError

    def _activation(self, x: Input) -> Activation:
        activation = x if isinstance(x, Activation) else Activation(x)
        if activation.columns != self.columns:
            raise ShapeError(
                f"[layers.{type(self).__name__}] needed x [..., {self.columns}], got "
                f"{activation.plain.shape}. Check the order of the layers."
            )
        return activation


class ProductLayer(CodedLayer):
    """A coded layer that multiplies every row by the whole matrix."""

    def __init__(self, rows: int, columns: int, code_bits: int) -> None:
        super().__init__(rows, columns, code_bits)
        self._product: _Made[Product] = _Made()

    def prepare(self) -> Product:
        """Return the product, made now unless it was made from these very parameters."""
        return self._product.get(self._make, self)

    def _make(self, matrix: CodedMatrix) -> Product:
        product = choose.prepare(matrix)
        return WithMeans(product, self.means) if "means" in self else product

    def _multiply(self, x: Input) -> mx.array:
        return self.prepare()(self._activation(x))


class HLWQLinear(ProductLayer):
    """A linear layer on coded weights; x of any floating dtype, which the result keeps."""

    def __init__(
        self, input_dims: int, output_dims: int, code_bits: int, bias: bool = False
    ) -> None:
        super().__init__(output_dims, input_dims, code_bits)
        self.input_dims = input_dims
        self.output_dims = output_dims
        if bias:
            self.bias = mx.zeros((output_dims,))

    def __call__(self, x: Input) -> mx.array:
        """Multiply: x [..., input_dims] -> [..., output_dims]."""
        y = self._multiply(x)
        return y + self.bias if "bias" in self else y


class HLWQEmbedding(ProductLayer):
    """An embedding table on coded weights, also usable as the head that is tied to it."""

    def __init__(self, num_embeddings: int, dims: int, code_bits: int) -> None:
        super().__init__(num_embeddings, dims, code_bits)
        self.num_embeddings = num_embeddings
        self.dims = dims
        self._rows: _Made[choose.Rows] = _Made()

    def __call__(self, ids: mx.array) -> mx.array:
        """Look up rows: integer ids [...] -> [..., dims] of the dtype that activations have."""
        rows = self._look_up()(ids)[..., : self.dims]
        return add_to_rows(rows, self.means, ids) if "means" in self else rows

    def as_linear(self, x: Input) -> mx.array:
        """Multiply by the whole table: x [..., dims] -> [..., num_embeddings]."""
        return self._multiply(x)

    def decoded(self, ids: mx.array) -> mx.array:
        """Return rows in float32 as a graph of MLX's: ids [P] -> [P, dims]."""
        rows = codec.embed(ids, self.matrix)[:, : self.dims]
        return add_to_rows(rows, self.means, ids) if "means" in self else rows

    def prepare(self) -> Product:
        """Return the product of the tied head; prepare the row lookup too."""
        self._look_up()
        return super().prepare()

    def _look_up(self) -> choose.Rows:
        return self._rows.get(choose.prepare_rows, self)


class HLWQRows(ProductLayer):
    """Linear layers that share their input, stacked row-wise into one weight: q|k|v."""

    def __init__(self, input_dims: int, heights: Sequence[int], code_bits: int) -> None:
        super().__init__(sum(heights), input_dims, code_bits)
        self._ends = list(accumulate(heights))

    def __call__(self, x: Input) -> list[mx.array]:
        """Multiply: x [..., input_dims] -> for each layer [..., its height]."""
        y, ends = self._multiply(x), self._ends[:-1]
        if self.prepare().is_lazy or y.dtype != mx.float32:
            return list(mx.split(y, ends, axis=-1))
        # What is in memory is parted there: MLX's own parts would wait for its thread.
        return [mx.array(part) for part in np.split(np.asarray(y), ends, axis=-1)]


class HLWQGateUp(ProductLayer):
    """Two linear layers of one input as one weight, gate's rows above up's: gelu(gate) * up."""

    def __init__(self, input_dims: int, hidden_dims: int, code_bits: int) -> None:
        super().__init__(2 * hidden_dims, input_dims, code_bits)

    def __call__(self, x: Input) -> mx.array:
        """Multiply and gate: x [..., input_dims] -> [..., hidden_dims]."""
        return self._multiply(x)

    def prepare(self) -> Product:
        """Return the product that applies the gate to its own result."""
        return self._product.get(choose.prepare_gate_up, self)


class HLWQExperts(CodedLayer):
    """A stack of coded linear layers, one below the other, of which each row of x meets a few."""

    def __init__(self, experts: int, input_dims: int, output_dims: int, code_bits: int) -> None:
        super().__init__(experts * output_dims, input_dims, code_bits)
        self.experts = experts
        self._product: _Made[ExpertProduct] = _Made()

    def __call__(self, x: Input, experts: mx.array) -> mx.array:
        """Multiply: x [..., input_dims], experts uint32 [..., k] -> [..., k, output_dims]."""
        return self.prepare()(self._activation(x), experts)

    def prepare(self) -> ExpertProduct:
        """Return the product, made now unless it was made from these very parameters."""
        return self._product.get(self._stack, self)

    def _stack(self, matrix: CodedMatrix) -> ExpertProduct:
        product = choose.prepare_experts(matrix, self.experts)
        if "means" not in self:
            return product
        return ExpertsWithMeans(product, self.means, self.experts)


class Linear(nn.Linear):
    """An uncoded linear layer; its input may be an activation shared with coded layers."""

    def __call__(self, x: Input) -> mx.array:
        """Multiply: x [..., input_dims] -> [..., output_dims]."""
        return super().__call__(x.plain if isinstance(x, Activation) else x)

    @property
    def columns(self) -> int:
        """The length of a row of x."""
        return self.weight.shape[1]


class ExpertLinear(nn.Module):
    """A stack of uncoded linear layers, of which each row of x meets a few."""

    def __init__(self, experts: int, input_dims: int, output_dims: int) -> None:
        super().__init__()
        self.weight = mx.zeros((experts, output_dims, input_dims))

    def __call__(self, x: Input, experts: mx.array) -> mx.array:
        """Multiply each row by its k experts, one by one, so that no row depends on another.

        Shapes: x [..., input_dims], experts uint32 [..., k] -> [..., k, output_dims].
        """
        rows = Activation.of(x).plain[..., None, None, :]
        return mx.gather_mm(rows, self.weight.swapaxes(-1, -2), rhs_indices=experts)[..., 0, :]


def is_lazy(model: nn.Module) -> bool:
    """Return whether a step with a few rows only adds to MLX's graph, in all layers."""
    if native_library():
        return False
    layers = (module for module in model.modules() if isinstance(module, CodedLayer))
    return all(layer.prepare().is_lazy for layer in layers)


_CODABLE = (nn.Linear, nn.Embedding, ExpertLinear)


def coded_weights(model: nn.Module, *, of_experts: bool) -> Counter[int]:
    """Count coded weights by width, padding included: those of stacks of experts, or all others."""
    weights: Counter[int] = Counter()
    for module in model.modules():
        if isinstance(module, CodedLayer) and isinstance(module, HLWQExperts) == of_experts:
            weights[module.code_bits] += module.norms.size * BLOCK
    return weights


def usual_bits(model: nn.Module) -> int:
    """Return the width that most of the coded weights have which every token meets, 8 if none."""
    weights = coded_weights(model, of_experts=False)
    return max(weights, key=weights.__getitem__, default=8)


def code_modules(model: nn.Module, manifest: Mapping[str, Any]) -> None:
    """Replace the modules that the manifest names by coded ones, ready to load their parameters.

    The manifest is {"tensors": {"<path>.weight": {"bits": int, "table": str}}, "tables":
    {"<table>/<bits>": [2**bits floats]}}; the centroids are set from it. An entry with "means" is
    of a matrix that has means of blocks beside its codes.

    Raises: CheckpointError listing every tensor that is not the weight of a linear layer, experts
    or an embedding of the model, or whose table the manifest lacks.
    """
    modules = dict(model.named_modules())
    tensors = manifest["tensors"]
    strangers = [
        name
        for name in tensors
        if not isinstance(modules.get(name.removesuffix(".weight")), _CODABLE)
        or not name.endswith(".weight")
    ]
    if strangers:
        raise CheckpointError(
            "[layers.code_modules] needed coded tensors to be weights of linear layers, experts or "
            f"embeddings of the model, got {', '.join(sorted(strangers))}. "
            "Check that the configuration and the manifest belong together."
        )
    tables = manifest["tables"]
    without_table = [
        name
        for name, entry in tensors.items()
        if len(tables.get(f"{entry['table']}/{entry['bits']}", ())) != 1 << entry["bits"]
    ]
    if without_table:
        raise CheckpointError(
            "[layers.code_modules] needed a table of 2**bits centroids for every coded tensor, "
            f"got none for {', '.join(sorted(without_table))}. Convert the model again."
        )

    def coded(path: str, module: nn.Module) -> nn.Module:
        entry = tensors.get(f"{path}.weight")
        if entry is None:
            return module
        bits = entry["bits"]
        layer = _coded(module, bits, tables[f"{entry['table']}/{bits}"])
        if entry.get("means", False):
            layer.add_means()
        return layer

    leaves = tree_map_with_path(coded, model.leaf_modules(), is_leaf=nn.Module.is_module)
    model.update_modules(leaves)


def pad_table(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a table as the parameter `centroids`: at least 8 entries, the last one repeated.

    Shapes: table [2**bits] -> [max(8, 2**bits)].
    """
    return np.pad(table, (0, max(0, MIN_ENTRIES - table.size)), mode="edge")


def _coded(module: nn.Module, bits: int, centroids: list[float]) -> CodedLayer:
    *stack, rows, columns = module.weight.shape
    replacement: CodedLayer
    if isinstance(module, nn.Embedding):
        replacement = HLWQEmbedding(rows, columns, bits)
    elif isinstance(module, ExpertLinear):
        replacement = HLWQExperts(stack[0], columns, rows, bits)
    else:
        replacement = HLWQLinear(columns, rows, bits, bias="bias" in module)
    replacement.centroids = mx.array(pad_table(np.array(centroids, dtype=np.float32)))
    return replacement
