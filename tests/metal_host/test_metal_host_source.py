"""The generated text against MLX's own, which it prints when a call is exported: no GPU needed."""

import os
import sys
import tempfile

import mlx.core as mx
import pytest

from metal_host.source import Call, Definition, generate


def zeros(*shape, dtype=mx.float16):
    return mx.zeros(shape, dtype=dtype)


CASES = {
    "plain": (
        Definition("a", ("inp",), ("out",), "out[thread_position_in_grid.x]=inp[0];"),
        Call([zeros(4, 16)], [mx.float16]),
    ),
    "template, 0-d input, shapes, atomics, header": (
        Definition(
            "b",
            ("x", "s"),
            ("o1", "o2"),
            "uint t=thread_index_in_simdgroup; x_shape; x_strides; x_ndim; s_ndim;",
            "// header\n",
            has_atomic_outputs=True,
        ),
        Call(
            [zeros(2, 3), mx.array(1.0)],
            [mx.float32, mx.int32],
            [("T", mx.bfloat16), ("N", 3), ("B", True), ("C", False), ("M", -7)],
        ),
    ),
    "attributes that contain each other": (
        Definition(
            "c",
            ("x", "y"),
            ("o",),
            "dispatch_threads_per_threadgroup; simdgroup_index_in_threadgroup; y_strides",
        ),
        Call([zeros(3, dtype=mx.uint8), zeros(8, dtype=mx.uint64)], [mx.bool_], [("D", 128)]),
    ),
    "names found within other names": (
        Definition("d", ("x",), ("o",), "grid_size max_shape"),
        Call([zeros(7, 1, dtype=mx.complex64)], [mx.complex64]),
    ),
    "no attribute": (
        Definition("e", ("x",), ("o", "p", "q"), "nothing"),
        Call([zeros(9, dtype=mx.int8)], [mx.int8, mx.int16, mx.bfloat16], [("Ty", mx.uint32)]),
    ),
    "no attribute, but a shape": (
        Definition("f", ("x",), ("o", "p"), "x_shape"),
        Call([zeros(9, dtype=mx.int16)], [mx.int64, mx.float32]),
    ),
    "no input": (
        Definition("g", (), ("o",), "thread_position_in_grid"),
        Call([], [mx.uint16]),
    ),
}


def written_by(action):
    """Return what an action writes to the process's standard output, C++ included."""
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        saved = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            action()
        finally:
            sys.stdout.flush()
            os.dup2(saved, 1)
            os.close(saved)
        file.seek(0)
        return file.read().decode()


def text_of_mlx(definition, call, path):
    kernel = mx.fast.metal_kernel(
        definition.name,
        definition.input_names,
        definition.output_names,
        definition.source,
        definition.header,
        atomic_outputs=definition.has_atomic_outputs,
    )

    def run(*inputs):
        return kernel(
            inputs=list(inputs),
            template=call.template,
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            output_shapes=[(4,)] * len(definition.output_names),
            output_dtypes=call.output_dtypes,
            verbose=True,
        )

    printed = written_by(lambda: mx.export_function(str(path), run, *call.inputs))
    return printed.split("```\n", 1)[1].rsplit("\n```", 1)[0]


@pytest.mark.parametrize("name", CASES)
def test_text_equals_that_of_mlx(name, tmp_path):
    definition, call = CASES[name]
    assert generate(definition, call).text == text_of_mlx(definition, call, tmp_path / "f.mlxfn")


def test_a_template_argument_of_another_type_is_refused():
    definition = Definition("a", (), ("o",), "")
    with pytest.raises(ValueError, match=r"bool, int or Dtype for template argument F, got float"):
        generate(definition, Call([], [mx.float32], [("F", 0.5)]))
