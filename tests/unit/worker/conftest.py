"""A worker without torch: a small WordPiece tokenizer, an engine that obeys the test, a server on a free port.

And one with torch: random-weight cross-encoders of a few kilobytes in normal Hugging Face folders.
"""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rerank_api.worker_config import ModelSource, WorkerConfig
from rerank_worker.batching import Policy
from rerank_worker.engine import Pair, capacity, select
from rerank_worker.loading.model import Loaded
from rerank_worker.scheduler import EngineThread
from rerank_worker.server.lifecycle import Options, Server
from rerank_worker.server.models import OWN
from rerank_worker.tokenization import PairTokenizer
from rerank_worker.tracing import Tracing
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# As the worker sets it: spinning threads of torch starve whatever else the machine runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# How fast a model is does not matter here, so no test waits for it to be measured.
capacity.SECONDS["cpu"] = 0.02
select.SECONDS = 0.02

WAIT = 20.0
"""Seconds until a condition that must come true counts as missed."""

MAX_LENGTH = 32

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCABULARY = {
    token: number for number, token in enumerate([*SPECIAL, *LETTERS, *("##" + letter for letter in LETTERS)])
}


def make_tokenizer() -> Tokenizer:
    """Every letter is a token; [CLS] query [SEP] document [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", VOCABULARY["[CLS]"]), ("[SEP]", VOCABULARY["[SEP]"])],
    )
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """The command line takes the process's logging over; the next test gets it back."""
    loggers = [logging.getLogger(), logging.getLogger("rerank_worker")]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return make_tokenizer()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds; fails the test when it does not come to that."""
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110 (what is waited for happens in another thread)
            await asyncio.sleep(0.005)


@dataclass
class ObedientEngine:
    """Scores a pair by its length in tokens; fails, waits and remembers as the test wants."""

    open: threading.Event = field(default_factory=threading.Event)
    failures: list[BaseException] = field(default_factory=list)
    """Raised by the next batches, first to last."""
    too_large: int | None = None
    """A batch of more pairs than this is out of memory."""
    score: Callable[[Pair], float] = len
    batches: list[list[Pair]] = field(default_factory=list)
    computing: int = 0
    name: str = "obedient"
    padded: bool = True

    def __post_init__(self) -> None:
        self.open.set()

    def prepare(self, pairs: Sequence[Pair]) -> list[Pair]:
        from rerank_worker.engine import EngineOutOfMemory

        if self.too_large is not None and len(pairs) > self.too_large:
            raise EngineOutOfMemory("too many pairs")
        return list(pairs)

    def compute(self, prepared: list[Pair]) -> list[float]:
        self.computing += 1
        try:
            if not self.open.wait(WAIT):
                raise AssertionError("the test never opened the engine")
        finally:
            self.computing -= 1
        self.batches.append(prepared)
        if self.failures:
            raise self.failures.pop(0)
        return [float(self.score(pair)) for pair in prepared]

    def collect(self, output: list[float]) -> list[float]:
        return output

    def close(self) -> None:
        return None


def make_policy(**changes: Any) -> Policy:
    return replace(Policy(max_tokens=256, bucket=8, max_length=MAX_LENGTH, max_delay=0.002), **changes)


def make_loaded(engine: ObedientEngine, **changes: Any) -> Loaded:
    return Loaded(
        engine=engine,
        tokenizer=PairTokenizer(make_tokenizer(), MAX_LENGTH),
        policy=make_policy(**changes),
        activation="identity",
        info={"model": "obedient", "device": "none", "sha256": {}},
    )


@dataclass
class Running:
    """A server on a free port of the loopback and a client for it."""

    server: Server
    engine: ObedientEngine
    client: aiohttp.ClientSession

    async def score(self, body: Any, **headers: str) -> tuple[int, Any, Any]:
        """Status, JSON and headers of the answer to ``body`` (bytes as they are, anything else as JSON)."""
        content = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.client.post("/v1/score", headers=headers, **content) as response:
            return response.status, await response.json(), response.headers

    async def get(self, path: str) -> tuple[int, str]:
        async with self.client.get(path) as response:
            return response.status, await response.text()

    @property
    def thread(self) -> EngineThread:
        """The engine thread of the model that the server was started with."""
        thread = self.server.models.get(OWN).engine
        assert thread is not None
        return thread

    def metric(self, name: str, **labels: str) -> float:
        value = self.server.metrics.registry.get_sample_value(name, labels)
        return 0.0 if value is None else value


Serve = Callable[..., Coroutine[Any, Any, Running]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts servers; ``ready=False`` does not wait for the model, ``standby`` starts without one."""
    started: list[Running] = []

    async def start(
        engine: ObedientEngine | None = None,
        *,
        build: Callable[[], Loaded] | None = None,
        load: Callable[[WorkerConfig], Loaded] | None = None,
        standby: bool = False,
        policy: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        ready: bool = True,
        tracing: Tracing | None = None,
        **config: Any,
    ) -> Running:
        engine = engine or ObedientEngine()
        defaults: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "threads": 2, "lame_duck": 0.0}
        server = Server(
            None if standby else WorkerConfig(model=ModelSource(path="/obedient"), **config),
            Options(**defaults | (options or {})),
            load or (lambda _: build() if build is not None else make_loaded(engine, **(policy or {}))),
            tracing=tracing,
        )
        await server.start()
        client = aiohttp.ClientSession(f"http://127.0.0.1:{server.port}")
        running = Running(server, engine, client)
        started.append(running)
        if ready:
            await server.become_ready()
        return running

    yield start
    for running in started:
        running.engine.open.set()
        await running.client.close()
        await running.server.stop()


def save_tokenizer(folder: Path, max_length: int = 64) -> None:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(),
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)


def save_model(folder: Path, kind: str = "Bert", **settings: Any) -> None:
    """A random-weight sequence classifier of architecture ``kind`` with scores that spread well apart."""
    import torch
    import transformers

    common = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 80,
        "pad_token_id": 0,
        "num_labels": 1,
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**common | settings)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    for name, parameter in model.named_parameters():
        if "norm" not in name.lower() and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    save_tokenizer(folder)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    save_model(folder)
    return folder
