"""ONNX files whose weights are integers: INT4 or INT8 initializers behind DequantizeLinear, inputs as QDQ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oscillations.core.errors import InputError
from oscillations.nn.packed import QuantizedInput, QuantizedModel, QuantizedTensor

OPSET = 21  #: the first with 4-bit integers
OLDEST = 17  #: that torch's exporter writes
FOUR_BITS = 21
#: without it ONNX Runtime quantizes the inputs of products with 8-bit weights, too, to 8 bits as they come
FLOAT_PRODUCTS = ("session.qdq_matmulnbits_accuracy_level", "1")


def need(name: str) -> Any:
    """An optional package, by its import name; InputError that says how to get it."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise InputError(f"export: ONNX needs {name}: pip install 'oscillations[export]'") from None


def write(exported: QuantizedModel, model: nn.Module, file: Path, example: Tensor, opset: int = OPSET) -> None:
    """Write the model, which holds the exported weights, with these as integers and its inputs quantized.

    Raises InputError if the opset cannot be written or run here.
    """
    onnx = need("onnx")
    need("onnxscript")
    newest = newest_opset()
    if type(opset) is not int or not OLDEST <= opset <= newest:
        raise InputError(f"opset: {opset} is not among those that can be written and run here: {OLDEST} to {newest}")
    program = torch.onnx.export(
        model, (example[:2],), dynamo=True, opset_version=opset, optimize=False, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},), input_names=["images"], output_names=["logits"],
    )  # fmt: skip
    assert program is not None
    graph_of = program.model_proto
    for name, one in exported.weights.items():
        _as_integers(onnx, graph_of.graph, name, one, opset)
    for layer, of in exported.inputs.items():
        _quantize_input(onnx, graph_of.graph, layer, of)
    for node in graph_of.graph.node:  # where in torch it comes from, several times the weights' size
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for one_of in (graph_of, graph_of.graph):
        one_of.ClearField("metadata_props")
    graph_of.graph.ClearField("value_info")
    onnx.checker.check_model(graph_of)
    file.write_bytes(graph_of.SerializeToString())


def _as_integers(onnx: Any, graph: Any, name: str, one: QuantizedTensor, opset: int) -> None:
    """Replace the initializer ``name`` by the codes of its weights, and a node that makes the weights of them."""
    place = [i for i, initializer in enumerate(graph.initializer) if initializer.name == name]
    if len(place) != 1:
        raise InputError(f"export: {name} is no initializer of the ONNX graph")
    del graph.initializer[place[0]]
    codes, scale = one.codes.numpy().astype(np.int16), one.scale
    if one.grid.offset:  # levels at half steps are odd multiples of half a step
        codes, scale = 2 * codes + 1, scale / 2
    width = 4 if _within(codes, 4) and opset >= FOUR_BITS else 8 if _within(codes, 8) else 16
    if width == 16 and opset < FOUR_BITS:
        raise InputError(f"opset: {opset} has no 16-bit codes, which {name} needs; {FOUR_BITS} has")
    kind = getattr(onnx.TensorProto, f"INT{width}")
    flat = scale.flatten().numpy()
    shape = [] if scale.dim() == 0 else [len(flat)]
    graph.initializer.extend(
        [
            onnx.helper.make_tensor(f"{name}.codes", kind, list(codes.shape), _raw(codes.ravel(), width), raw=True),
            onnx.helper.make_tensor(f"{name}.scale", onnx.TensorProto.FLOAT, shape, flat.tolist()),
        ]
    )
    node = onnx.helper.make_node(
        "DequantizeLinear", [f"{name}.codes", f"{name}.scale"], [name], name=f"{name}.dequantize",
        **({"axis": 0} if shape else {}),
    )  # fmt: skip
    graph.node.insert(0, node)


def _raw(codes: np.ndarray, width: int) -> bytes:
    """Codes as ONNX stores them: little-endian, two of 4 bits to a byte, the first in its lower half."""
    if width > 4:
        return codes.astype(f"<i{width // 8}").tobytes()
    halves = np.append(codes, np.zeros(len(codes) % 2, codes.dtype)).astype(np.uint8) & 15
    return (halves[::2] | halves[1::2] << 4).tobytes()


def _within(codes: np.ndarray, bits: int) -> bool:
    return bool(codes.min() >= -(2 ** (bits - 1)) and codes.max() < 2 ** (bits - 1))


def _quantize_input(onnx: Any, graph: Any, layer: str, one: QuantizedInput) -> None:
    """Put clipping and a pair of QuantizeLinear and DequantizeLinear before the data of the layer's product."""
    node, place = _consumer(graph, f"{layer}.weight")
    data, step = node.input[0], np.float32(one.step.item())
    zero = np.int8(0) if one.low < 0 else np.uint8(0)
    names = {part: f"{layer}.input.{part}" for part in ("low", "high", "step", "zero", "clipped", "codes", "quantized")}
    # clipping first rounds to the same ends
    constants = {"low": np.float32(one.low) * step, "high": np.float32(one.high) * step, "step": step, "zero": zero}
    for part, value in constants.items():
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), names[part]))
    make = onnx.helper.make_node
    added = [
        make("Clip", [data, names["low"], names["high"]], [names["clipped"]]),
        make("QuantizeLinear", [names["clipped"], names["step"], names["zero"]], [names["codes"]]),
        make("DequantizeLinear", [names["codes"], names["step"], names["zero"]], [names["quantized"]]),
    ]
    node.input[0] = names["quantized"]
    for new in reversed(added):
        graph.node.insert(place, new)


def _consumer(graph: Any, name: str) -> tuple[Any, int]:
    """The product that a weight goes into, through a transposition, say, and its place among the nodes."""
    for place, node in enumerate(graph.node):
        if name in node.input and node.op_type != "DequantizeLinear":
            if node.op_type in ("Gemm", "MatMul", "Conv"):
                return node, place
            return _consumer(graph, node.output[0])
    raise InputError(f"export: no product of the ONNX graph uses {name}")


def newest_opset() -> int:
    """The newest opset that both the onnx package and this ONNX Runtime know."""
    onnx, runtime = need("onnx"), need("onnxruntime")
    written = int(onnx.defs.onnx_opset_version())
    for opset in range(written, OLDEST, -1):
        if _runs(onnx, runtime, opset):
            return opset
    return OLDEST


def _runs(onnx: Any, runtime: Any, opset: int) -> bool:
    one = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    two = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "identity", [one], [two])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception:  # whatever the runtime raises for what it does not know
        return False
    return True


def session(file: Path, threads: int = 1) -> Any:
    """An ONNX Runtime session on the CPU; InputError if the runtime cannot take the file."""
    runtime = need("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry(*FLOAT_PRODUCTS)
    try:
        return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever the runtime raises
        raise InputError(f"{file}: this ONNX Runtime ({runtime.__version__}) cannot take it: {error}") from None


def run(opened: Any, images: Tensor) -> Tensor:
    """Logits by a :func:`session`."""
    return torch.from_numpy(opened.run(None, {"images": images.contiguous().numpy()})[0])
