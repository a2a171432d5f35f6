"""Exports a model folder to ONNX as sentence-transformers does: ``export.py FOLDER TARGET``. Runs in the peer's own
environment."""

import sys

from sentence_transformers import CrossEncoder


def main(folder: str, target: str) -> None:
    options = {"export": True, "provider": "CPUExecutionProvider"}
    CrossEncoder(folder, backend="onnx", model_kwargs=options, local_files_only=True).save_pretrained(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
