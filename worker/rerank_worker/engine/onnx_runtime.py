"""ONNX Runtime on the CPU: the checkpoint's module exported to ONNX at load, batches padded.

The graph is made from the verified safetensors and kept in the cache of graphs; an .onnx file in the model's folder is
in no lock file and is never read. Never computes on a GPU. int8: weights in blocks of 128 with their own scales, and
activations quantized row by row while they are multiplied (accuracy level 4 of MatMulNBits), so a pair has no part in
the scales of its neighbours. ONNX Runtime's own dynamic quantization has one scale for a whole batch, and static scales
cost 5 % of nDCG@10 on the demo model: neither is offered.
"""

from pathlib import Path
from typing import Any

from rerank_worker.engine import EngineUnsupported, graph, graph_cache
from rerank_worker.failures import first_line
from rerank_worker.loading.checkpoint import Checkpoint

OPSET = 23
"""The first with an Attention operator."""

FILE = "graph.onnx"

BLOCK = 128
"""Weights that share a scale. Blocks of 32 were slower than float32."""

_ROWS = 4
"""Tokens that MatMulNBits computes at once; the rest it rounds in another way, and scores would differ by 0.03."""

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def build(checkpoint: Checkpoint) -> graph.GraphEngine:
    """The engine for ``checkpoint``. Raises EngineUnsupported, EnvironmentFailure, or what loading raises."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise EngineUnsupported(
            f"spec.runtime.backend onnx needs {error.name}, which is not installed: install rerank-worker[onnx]"
        ) from error
    graph.check_supported(checkpoint, "onnx")
    if checkpoint.precision not in ("float32", "int8"):
        raise EngineUnsupported(
            f"spec.runtime.backend onnx computes in float32 and int8, not in {checkpoint.precision}: set "
            "spec.runtime.precision to one of them"
        )
    full = graph_cache.entry(
        graph_cache.key(checkpoint, "onnx-float32", _PACKAGES), lambda folder: _export(checkpoint, folder)
    )
    int8 = checkpoint.precision == "int8"
    if int8:
        place = graph_cache.entry(
            graph_cache.key(checkpoint, "onnx-int8", _PACKAGES), lambda folder: _quantize(full / FILE, folder)
        )
    else:
        place = full
    with graph.runtime_errors():
        session = _session(onnxruntime, place / FILE, checkpoint.threads)
    padding = graph.Padding(checkpoint, _ROWS if int8 else 1)
    return graph.GraphEngine("onnxruntime", lambda inputs: session.run([graph.OUTPUT], inputs)[0], padding)


def _session(onnxruntime: Any, path: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Threads that spin while they wait take the cores from whoever shares them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Plans of memory are kept for each shape of inputs, of which there is no end.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _export(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the graph in float32 into ``folder``, with its weights beside it: a file of ONNX ends at 2 GB."""
    import onnxruntime
    import torch

    graph.quieten()
    names = graph.input_names(checkpoint.takes_types)
    program = graph.export(checkpoint)
    try:
        exported: Any = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=[graph.OUTPUT],
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise EngineUnsupported(
            f"{checkpoint.architecture} cannot be exported to ONNX: {first_line(error)}; set "
            "spec.runtime.backend to auto or torch"
        ) from error
    exported.save(str(folder / FILE), external_data=True)
    session = _session(onnxruntime, folder / FILE, checkpoint.threads)
    graph.check(checkpoint, "ONNX Runtime", lambda inputs: session.run([graph.OUTPUT], dict(inputs))[0].tolist())


def _quantize(full: Path, folder: Path) -> None:
    """Write ``full`` with its linear layers in int8 into ``folder``; embeddings and the head stay as they are."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    graph.quieten()
    quantizer: Any = MatMulNBitsQuantizer(
        onnx.load(full), bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=4, op_types_to_quantize=("MatMul",)
    )
    quantizer.process()
    onnx.save(quantizer.model.model, folder / FILE, save_as_external_data=True, location=f"{FILE}.data")
