"""OpenVINO on the CPU: the checkpoint's module converted at load, batches padded.

The graph is made from the verified safetensors and kept in the cache of graphs. Never computes on another device, never
uses the network: openvino's telemetry, which on import sends an event and writes a client id into the home folder, is
kept from being imported. int8: weights with a scale for each output, activations quantized in groups of 128 within a
token, so a pair has no part in the scales of its neighbours.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rerank_worker.engine import EngineUnsupported, graph, graph_cache
from rerank_worker.failures import first_line
from rerank_worker.loading.checkpoint import Checkpoint

FILE = "graph.xml"

GROUP = 128
"""Activations of one token that share a scale. A whole row was slower than float32; 32 gave no better ranking."""

_PACKAGES = ("openvino",)


def build(checkpoint: Checkpoint) -> graph.GraphEngine:
    """The engine for ``checkpoint``. Raises EngineUnsupported, EnvironmentFailure, or what loading raises."""
    openvino = _library()
    graph.check_supported(checkpoint, "openvino")
    if checkpoint.precision not in ("float32", "bfloat16", "int8"):
        raise EngineUnsupported(
            f"spec.runtime.backend openvino computes in float32, bfloat16 and int8, not in {checkpoint.precision}: set "
            "spec.runtime.precision to one of them"
        )
    core = openvino.Core()
    if checkpoint.precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise EngineUnsupported(
            "this processor has no bfloat16 instructions: set spec.runtime.precision to float32 or int8"
        )
    place = graph_cache.entry(
        graph_cache.key(checkpoint, "openvino-float32", _PACKAGES),
        lambda folder: _convert(openvino, checkpoint, folder),
    )
    if checkpoint.precision == "int8":
        full = place / FILE
        place = graph_cache.entry(
            graph_cache.key(checkpoint, "openvino-int8", _PACKAGES), lambda folder: _quantize(openvino, full, folder)
        )
    with graph.runtime_errors():
        request = _request(core, place / FILE, checkpoint.precision, checkpoint.threads)
    return graph.GraphEngine("openvino", lambda inputs: _infer(request, inputs), graph.Padding(checkpoint))


def _library() -> Any:
    """The openvino module, without its telemetry. Raises EngineUnsupported when it is not installed."""
    # Python's way to say that a module is not there; openvino then uses its own stand-in, which does nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # ty: ignore[no-matching-overload]
    try:
        import openvino
    except ImportError as error:
        raise EngineUnsupported(
            f"spec.runtime.backend openvino needs {error.name}, which is not installed: install rerank-worker[openvino]"
        ) from error
    return openvino


def _request(core: Any, model: Any, precision: str, threads: int) -> Any:
    """``model``: a path or a model of openvino."""
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        # Pinned threads of two pods would share one core.
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP if precision == "int8" else 0,
    }
    return core.compile_model(model, "CPU", settings).create_infer_request()


def _infer(request: Any, inputs: graph.Inputs) -> np.ndarray:
    # A copy: the request writes its next output over this one.
    return np.array(request.infer(inputs)[0], dtype=np.float32)


def _convert(openvino: Any, checkpoint: Checkpoint, folder: Path) -> None:
    """Write the graph in float32 into ``folder``."""
    graph.quieten()
    program = graph.export(checkpoint, finite_mask=True)
    try:
        model = openvino.convert_model(program)
    except Exception as error:
        raise EngineUnsupported(
            f"{checkpoint.architecture} cannot be converted to OpenVINO: {first_line(error)}; set "
            "spec.runtime.backend to auto or torch"
        ) from error
    for port, name in zip(model.inputs, graph.input_names(checkpoint.takes_types), strict=True):
        port.get_tensor().set_names({name})
    _keep_head(model)
    request = _request(openvino.Core(), model, "float32", checkpoint.threads)
    graph.check(checkpoint, "OpenVINO", lambda inputs: _infer(request, dict(inputs)).tolist())
    openvino.save_model(model, folder / FILE, compress_to_fp16=False)


def _keep_head(model: Any) -> None:
    """Write out the layer of one output as a sum of products, which reduced precision leaves in float32.

    As a matrix product in bfloat16 its logits come in steps of 0.03, and documents tie.
    """
    from openvino import opset13

    for node, weights, inputs_axis in _linear(model):
        if weights.shape[1 - inputs_axis] == 1:
            product = opset13.multiply(node.input_value(0), opset13.constant(weights.reshape(-1)))
            total = opset13.reduce_sum(product, opset13.constant(np.array([-1])), keep_dims=True)
            for target in node.output(0).get_target_inputs():
                target.replace_source_output(total.output(0))


def _linear(model: Any) -> Iterator[tuple[Any, np.ndarray, int]]:
    """The matrix products with constant weights: node, weights in float32, and the axis of the weights' inputs."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        source = node.input_value(1).get_node()
        if source.get_type_name() == "Constant" and len(source.get_output_shape(0)) == 2:
            weights = np.asarray(source.data, dtype=np.float32)
            yield node, weights, 1 if node.get_attributes()["transpose_b"] else 0


def _quantize(openvino: Any, full: Path, folder: Path) -> None:
    """Write ``full`` into ``folder`` with int8 weights, and a scale for each output, in its linear layers."""
    from openvino import opset13

    model = openvino.Core().read_model(full)
    for node, weights, inputs_axis in _linear(model):
        scales = np.maximum(np.abs(weights).max(axis=inputs_axis, keepdims=True), np.finfo(np.float32).tiny) / 127
        whole = opset13.constant(np.round(weights / scales).astype(np.int8))
        product = opset13.multiply(opset13.convert(whole, np.float32), opset13.constant(scales.astype(np.float32)))
        node.input(1).replace_source_output(product.output(0))
    openvino.save_model(model, folder / FILE, compress_to_fp16=False)
