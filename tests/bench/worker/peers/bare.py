"""A bare aiohttp server around a scorer, as people write one by hand: one model thread, one request after the other.

    bare.py ENGINE --folder FOLDER --port PORT --threads N --batch N

Engines: ``crossencoder`` (sentence-transformers with torch), ``crossencoder-onnx`` (its ONNX backend) and
``ort-sorted`` (ONNX Runtime by hand: all pairs of a request sorted by length, padded batches). Runs in the peers' own
environments too, so it needs nothing of this project. POST /v1/score {query, documents} -> {scores}.
"""

import argparse
import asyncio
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from aiohttp import web

Scorer = Callable[[str, list[str]], list[float]]
MAX_LENGTH = 512


def crossencoder(folder: Path, threads: int, batch: int) -> Scorer:
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(threads)
    model = CrossEncoder(str(folder), device="cpu", max_length=MAX_LENGTH, local_files_only=True)
    return lambda query, documents: model.predict(
        [(query, document) for document in documents], batch_size=batch, show_progress_bar=False
    ).tolist()


def crossencoder_onnx(folder: Path, threads: int, batch: int) -> Scorer:
    import onnxruntime
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = CrossEncoder(
        str(folder),
        backend="onnx",
        device="cpu",
        max_length=MAX_LENGTH,
        local_files_only=True,
        model_kwargs={
            "provider": "CPUExecutionProvider",
            "file_name": "onnx/model.onnx",
            "export": False,
            "session_options": options,
        },
    )
    return lambda query, documents: model.predict(
        [(query, document) for document in documents], batch_size=batch, show_progress_bar=False
    ).tolist()


def ort_sorted(folder: Path, threads: int, batch: int) -> Scorer:
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_LENGTH)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", options, providers=["CPUExecutionProvider"])
    names = {given.name for given in session.get_inputs()}
    padding = json.loads((folder / "config.json").read_text(encoding="utf-8"))["pad_token_id"]

    def score(query: str, documents: list[str]) -> list[float]:
        encodings = tokenizer.encode_batch([(query, document) for document in documents])
        order = sorted(range(len(encodings)), key=lambda index: len(encodings[index].ids))
        scores = [0.0] * len(encodings)
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            width = max(len(encodings[index].ids) for index in part)
            ids = np.full((len(part), width), padding, dtype=np.int64)
            mask, types = np.zeros_like(ids), np.zeros_like(ids)
            for row, index in enumerate(part):
                length = len(encodings[index].ids)
                ids[row, :length] = encodings[index].ids
                mask[row, :length] = 1
                types[row, :length] = encodings[index].type_ids
            given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
            (output,) = session.run(None, {name: given[name] for name in names})
            logits = np.asarray(output)[:, 0]
            for index, logit in zip(part, logits.tolist(), strict=True):
                scores[index] = 1 / (1 + math.exp(-logit))
        return scores

    return score


ENGINES = {"crossencoder": crossencoder, "crossencoder-onnx": crossencoder_onnx, "ort-sorted": ort_sorted}


def build_app(score: Scorer) -> web.Application:
    # One thread: neither transformers' tokenizers nor a session tuned for all cores gain from a second caller.
    model_thread = ThreadPoolExecutor(1)

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        loop = asyncio.get_running_loop()
        return web.json_response(
            {"scores": await loop.run_in_executor(model_thread, score, body["query"], body["documents"])}
        )

    async def ready(_request: web.Request) -> web.Response:
        return web.Response(text="ok")

    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_post("/v1/score", answer)
    app.router.add_get("/readyz", ready)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    options = parser.parse_args()
    scorer = ENGINES[options.engine](options.folder, options.threads, options.batch)
    web.run_app(build_app(scorer), host="127.0.0.1", port=options.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
