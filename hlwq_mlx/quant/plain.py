"""Layers of plain numbers on a CPU: their weights stay in 16 bits, which the native library reads.

Stock MLX would need them in float32, twice as large, for it multiplies 16 bits many times slower.
"""

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map_with_path

from .activation import Activation, Input
from .backends.native.library import FORMATS, Library, Weight, floats, native_library
from .backends.native.product import Native
from .layers import HLWQGateUp, HLWQLinear, HLWQRows, Linear


class _Plain(nn.Module):
    """The base of layers with one matrix of plain numbers."""

    def __init__(self, layer: nn.Module, library: Library) -> None:
        super().__init__()
        self.weight = layer.weight
        if "bias" in layer:
            self.bias = layer.bias
        self._library = library
        self._made: tuple[mx.array, Weight] | None = None

    @property
    def columns(self) -> int:
        """The length of a row."""
        return int(self.weight.shape[1])

    def native_weight(self) -> Weight:
        """Return the weight as the library takes it."""
        if self._made is None or self._made[0] is not self.weight:
            self._made = self.weight, Weight.plain(self.weight)
        return self._made[1]

    def _multiply(self, x: Input) -> mx.array:
        plain = Activation.of(x).plain
        y = self._library.multiply(self.native_weight(), floats(plain))
        product: mx.array = mx.array(y.reshape(*plain.shape[:-1], -1)).astype(plain.dtype)
        return product


class PlainLinear(_Plain):
    """A linear layer on plain numbers."""

    def __call__(self, x: Input) -> mx.array:
        """Multiply: x [..., input_dims] -> [..., output_dims]."""
        y = self._multiply(x)
        return y + self.bias.astype(y.dtype) if "bias" in self else y


class PlainEmbedding(_Plain):
    """A table of plain numbers, also usable as the head that is tied to it."""

    def __call__(self, ids: mx.array) -> mx.array:
        """Look up rows: integer ids [...] -> float32 [..., dims]."""
        return self.weight[ids].astype(mx.float32)

    def as_linear(self, x: Input) -> mx.array:
        """Multiply by the whole table: x [..., dims] -> [..., rows]."""
        return self._multiply(x)

    def decoded(self, ids: mx.array) -> mx.array:
        """Return rows in float32 as a graph of MLX's: ids [P] -> [P, dims]."""
        return self(ids)


def weight_of(layer: nn.Module) -> Weight | None:
    """Return the one weight that a layer multiplies by natively, if it does nothing else."""
    if "bias" in layer:
        return None
    if type(layer) is PlainLinear:
        return layer.native_weight()
    product = layer.prepare() if type(layer) in (HLWQLinear, HLWQGateUp, HLWQRows) else None
    return product.weight if isinstance(product, Native) else None


def is_kept(name: str, weight: mx.array) -> bool:
    """Return whether a tensor stays in 16 bits until `keep_plain` knows whose it is."""
    return bool(native_library()) and weight.ndim == 2 and name.endswith(".weight")


def keep_plain(model: nn.Module) -> None:
    """Replace a model's linear layers and tables of plain numbers, where there is the library.

    What else is in 16 bits is cast to float32, as all that is computed by stock MLX on a CPU.
    """
    library = native_library()
    if library is None:
        return

    def kept(path: str, layer: nn.Module) -> nn.Module:
        if type(layer) in (nn.Linear, Linear) and layer.weight.dtype in FORMATS:
            return PlainLinear(layer, library)
        if type(layer) is nn.Embedding and layer.weight.dtype in FORMATS:
            return PlainEmbedding(layer, library)
        own = layer.get("weight")
        if own is not None and own.ndim == 2 and own.dtype in (mx.float16, mx.bfloat16):
            layer.weight = own.astype(mx.float32)
        return layer

    leaves = tree_map_with_path(kept, model.leaf_modules(), is_leaf=nn.Module.is_module)
    model.update_modules(leaves)
