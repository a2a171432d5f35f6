"""The models of this process by key: loaded beside each other within bounds, swapped, drained, unloaded.

One load at a time, in the new model's own engine thread, so that what serves goes on serving. A model that is to take
another's place serves only once it has scored; until then, and if it fails, the old one stays. A load cannot be
stopped once it has begun: whoever stops waiting for it may ask again. Used by the event loop's thread only.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from rerank_api.worker_config import WorkerConfig

from rerank_worker import memory
from rerank_worker.failures import ConfigurationFailure, StartupFailure
from rerank_worker.loading import source
from rerank_worker.loading.model import Loaded
from rerank_worker.metrics import Metrics
from rerank_worker.scheduler import EngineThread
from rerank_worker.server.protocol import Refusal
from rerank_worker.server.serving import Scorer
from rerank_worker.turns import Turns

log = logging.getLogger(__name__)

OWN = "default"
"""Key of the model that the process was started with: SCORE_PATH is for it, and only a new process replaces it."""

DRAIN_SECONDS = 30.0
"""Seconds that requests for a model which is being unloaded get to finish."""

STOP_SECONDS = 5.0
"""Seconds that an engine thread gets to end once nothing waits, and that answers get to be sent."""

LEAST_OF_DISK = {"float16": 2, "bfloat16": 2, "int8": 4, "float8": 4}
"""A model is counted with at least its bytes on disk (of float32, perhaps) divided by this: weights are mapped into
memory where they need no conversion, and what was not touched yet does not show in what loading took."""

State = Literal["loading", "ready", "draining", "failed"]


@dataclass(frozen=True, slots=True)
class Limits:
    """``models`` that may be in the process (one that could not be loaded is none), and the ``bytes`` that they may
    take together (None: a share of the memory there is)."""

    models: int = 8
    bytes: int | None = None


@dataclass(eq=False, slots=True)
class Model:
    """``bytes``: its weights on disk until it is loaded, then what it takes by measurement, or by them if more."""

    key: str
    config: WorkerConfig
    engine: EngineThread | None
    bytes: int = 0
    state: State = "loading"
    scorer: Scorer | None = None
    failure: str | None = None
    ending: bool = False
    """Its engine thread was asked to end, so that nothing is wrong when it has."""
    live: Callable[[], dict[str, Any]] = dict
    """Facts that change while it serves."""
    info: dict[str, Any] = field(default_factory=dict)
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def unhealthy(self) -> str | None:
        """Why the process must be started anew for this model; None: it need not."""
        if self.engine is None or self.ending or self.state in ("loading", "failed"):
            return None
        return self.engine.unhealthy()

    def ready(self) -> Scorer:
        """What serves requests. Raises Refusal (unavailable)."""
        if (problem := self.unhealthy()) is not None:
            raise Refusal("unavailable", problem)
        if self.state == "failed":
            raise Refusal("unavailable", f"the model could not be loaded: {self.failure}")
        if self.scorer is None:
            raise Refusal("unavailable", "the model is loading" if self.state == "loading" else "the model is unloaded")
        return self.scorer

    @contextmanager
    def serving(self) -> Generator[None]:
        """Keeps the model from being unloaded under a request."""
        self.in_flight += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self.idle.set()

    def facts(self) -> dict[str, Any]:
        """The model's entry in the list of models."""
        return {
            "key": self.key,
            "state": self.state,
            "memoryBytes": self.bytes,
            "requestsInFlight": self.in_flight,
            "failure": self.failure,
            "model": source.model_name(self.config.model),
            "facts": self.info | self.live(),
        }


class Models:
    """``load``: builds what serves, in an engine thread; ``scorer``: what serves requests with it."""

    def __init__(
        self,
        load: Callable[[WorkerConfig], Loaded],
        scorer: Callable[[WorkerConfig, Loaded, EngineThread], Scorer],
        metrics: Metrics,
        stall_limit: float,
        limits: Limits,
    ) -> None:
        self._load_model = load
        self._scorer = scorer
        self._metrics = metrics
        self._stall_limit = stall_limit
        self._limits = limits
        self._models: dict[str, Model] = {}
        self._arriving: Model | None = None
        self._leaving: dict[Model, asyncio.Task[None]] = {}
        self._loads = asyncio.Lock()
        self._ended: str | None = None
        # All models of a process share one device.
        self._turns = Turns()
        self._running: set[asyncio.Task[Model]] = set()
        for state in get_args(State):
            metrics.models.labels(state).set_function(partial(self._count, state))

    # Asked by the routes and the probes.

    def get(self, key: str) -> Model:
        """Raises Refusal (not_found)."""
        if key not in self._models:
            raise Refusal("not_found", f"this worker has no model with key {key}: GET /v1/models lists those it has")
        return self._models[key]

    def all(self) -> list[Model]:
        arriving = [self._arriving] if self._arriving is not None else []
        return list(dict.fromkeys([*self._models.values(), *arriving, *self._leaving]))

    def _count(self, state: State) -> int:
        return sum(model.state == state for model in self.all())

    def unhealthy(self) -> str | None:
        """Why the process must be started anew; None while every model makes progress."""
        for model in self.all():
            if (problem := model.unhealthy()) is not None:
                return problem if model.key == OWN else f"model {model.key}: {problem}"
        return None

    # Loading.

    def own(self, config: WorkerConfig) -> Model:
        """The model that the process is started with; its engine thread is not running yet."""
        model = self._models[OWN] = self._new(OWN, config, 0)
        return model

    async def load_own(self, model: Model) -> Loaded:
        """Load what ``own`` gave, before or after all others. Raises the StartupFailure that keeps it from serving."""
        async with self._loads:
            return await self._finish(model)

    async def _finish(self, model: Model) -> Loaded:
        """Start the thread of ``model``, wait until it has scored, and let it serve. Raises the StartupFailure that
        keeps it from that."""
        assert model.engine is not None
        model.engine.start()
        loaded = await asyncio.wrap_future(model.engine.loaded)
        least = model.bytes // LEAST_OF_DISK.get(loaded.info.get("precision", ""), 1)
        model.bytes = max(loaded.info.get("memoryBytes", 0), least)
        model.info, model.live = loaded.info, partial(_live, loaded, model.engine)
        model.scorer = self._scorer(model.config, loaded, model.engine)
        model.state = "ready"
        model.idle.set()
        self._metrics.serving.set(model.key, _labels(model.config, loaded))
        return loaded

    async def put(self, key: str, config: WorkerConfig, deadline: float) -> Model:
        """The model with ``config`` under ``key``, ready; nothing is done when it is that already.

        Refusals: invalid_request (the configuration or the model is wrong), no_room, deadline (of time.monotonic();
        a load that has begun goes on), unavailable (the environment failed).
        """
        self._not_own(key)
        if (present := self._serving(key, config)) is not None:
            # Without waiting for another model's load.
            return present
        await self._turn_to_load(deadline)
        if self._ended is not None:
            self._loads.release()
            raise Refusal("unavailable", self._ended)
        # No await between the lock and the task that gives it back.
        task = asyncio.create_task(self._load(key, config))
        self._running.add(task)
        task.add_done_callback(self._loaded)
        await asyncio.wait({task}, timeout=deadline - time.monotonic())
        if self._ended is not None and (task.cancelled() or not task.done()):
            raise Refusal("unavailable", self._ended)
        if not task.done():
            raise Refusal("deadline", "the model is still loading, and goes on to: ask again, or GET /v1/models")
        return task.result()

    async def _turn_to_load(self, deadline: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._loads.acquire()
        except TimeoutError:
            raise Refusal("deadline", "another model was loading for the whole time: ask again") from None

    def _loaded(self, task: asyncio.Task[Model]) -> None:
        self._loads.release()
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Refusal):
            log.error("loading a model failed", exc_info=error)

    def _serving(self, key: str, config: WorkerConfig) -> Model | None:
        """The model with ``key``, where it is ready with that very ``config`` and nothing is to take its place.

        Raises Refusal (unavailable) where its engine has died or stalled.
        """
        if self._arriving is not None and self._arriving.key == key:
            return None
        found = self._models.get(key)
        if found is None or found.state != "ready" or found.config != config:
            return None
        found.ready()
        return found

    async def _load(self, key: str, config: WorkerConfig) -> Model:
        if (present := self._serving(key, config)) is not None:
            return present
        old = self._models.get(key)
        new = self._arriving = self._new(key, config, 0)
        started = time.monotonic()
        try:
            new.bytes = await self._room_for(new)
            if old is None or old.state == "failed":
                self._models[key] = new
            fields = {"key": key, "model": source.model_name(config.model), "bytes_on_disk": new.bytes}
            log.info("loading a model", extra={"fields": fields})
            await self._finish(new)
        except StartupFailure as failure:
            new.state, new.failure, new.engine, new.bytes = "failed", failure.sentence, None, 0
            log.warning("a model could not be loaded", extra={"fields": {"key": key, "failure": failure.sentence}})
            self._forget_failures()
            await asyncio.to_thread(memory.give_back)
            raise _refusal(failure) from failure
        finally:
            self._arriving = None
        self._models[key] = new
        log.info(
            "a model is ready",
            extra={"fields": {"key": key, "bytes": new.bytes, "seconds": round(time.monotonic() - started, 3)}},
        )
        if old is not None and old is not new and old.state == "ready":
            self._leave(old)
        return new

    def _forget_failures(self) -> None:
        """Keep no more of the models that could not be loaded than may be loaded: they are there to be read about."""
        failed = [key for key, model in self._models.items() if model.state == "failed"]
        for key in failed[: -self._limits.models]:
            del self._models[key]

    async def _room_for(self, new: Model) -> int:
        """Bytes of its weights, which fit; they are downloaded by then. Raises Refusal."""
        try:
            expected = await asyncio.to_thread(weight_bytes, new.config)
        except StartupFailure as failure:
            raise _refusal(failure) from failure
        self._check_room(new.key, expected)
        return expected

    def _new(self, key: str, config: WorkerConfig, expected: int) -> Model:
        build = partial(self._load_model, config)
        engine = EngineThread(build, self._metrics, self._stall_limit, turns=self._turns, model=key)
        return Model(key, config, engine, expected)

    def _check_room(self, key: str, expected: int) -> None:
        present = [model for model in self.all() if model.state != "failed" and model is not self._arriving]
        others = {model.key for model in present} - {key}
        if len(others) >= self._limits.models:
            raise Refusal(
                "no_room",
                f"{len(others)} models are in this worker (limit {self._limits.models}): unload one "
                "(DELETE /v1/models/{key}), or raise --max-models",
            )
        limit = memory.default_limit() if self._limits.bytes is None else self._limits.bytes
        held = sum(model.bytes for model in present)
        if held + expected > limit:
            raise Refusal(
                "no_room",
                f"the model's weights have {expected} bytes, which do not fit beside the {held} that "
                f"{len(present)} models take here (limit {limit}): unload one (DELETE /v1/models/{{key}}; a model that "
                "is swapped stays until the new one serves), or raise --max-model-bytes",
            )

    # Unloading.

    async def delete(self, key: str, deadline: float) -> None:
        """Drain and unload, at the latest when ``DRAIN_SECONDS`` are over. Refusals: not_found, loading (at once),
        deadline (the unloading goes on), internal (the engine did not end)."""
        self._not_own(key)
        if self._arriving is not None and self._arriving.key == key:
            raise Refusal(
                "loading",
                "the model is loading, and a load cannot be stopped: ask again once it is ready (GET /v1/models)",
            )
        if key in self._models:
            model = self._models.pop(key)
            if model.state == "failed":
                return
            self._leave(model)
        # One that was swapped, or that somebody else unloads, is waited for too.
        leaving = {task for model, task in self._leaving.items() if model.key == key}
        if not leaving:
            self.get(key)
            return
        _, unfinished = await asyncio.wait(leaving, timeout=max(0.0, deadline - time.monotonic()))
        if unfinished:
            raise Refusal("deadline", "the model still finishes requests, and is unloaded after them: ask again")
        for task in leaving:
            task.result()

    def _leave(self, model: Model) -> None:
        model.state = "draining"
        task = self._leaving[model] = asyncio.create_task(self._unload(model, DRAIN_SECONDS))
        # Whoever asked may have left: the log has it then.
        task.add_done_callback(lambda done: None if done.cancelled() else done.exception())

    async def _unload(self, model: Model, drain_seconds: float) -> None:
        await _until(model.idle, drain_seconds)
        engine, model.scorer = model.engine, None
        assert engine is not None
        engine.fail_all("the model is being unloaded")
        await _until(model.idle, STOP_SECONDS)
        model.ending = True
        # A batch that was begun may take longer: only an engine that has stalled is given up.
        while not await asyncio.to_thread(engine.stop, STOP_SECONDS):
            if engine.unhealthy() is not None and not engine.stop(0.0):
                model.ending = False
                # Its memory cannot be freed under it; the watch of stalled engines ends the process in time.
                log.error("an engine thread did not end: its memory is kept", extra={"fields": {"key": model.key}})
                raise Refusal("internal", "the model's engine did not end: its memory is free only in a new process")
        # All that leads to the weights.
        model.engine, model.live = None, dict
        del engine
        await asyncio.to_thread(memory.give_back)
        self._leaving.pop(model, None)
        if model.key not in self._models:
            self._metrics.forget(model.key)
        log.info("unloaded a model", extra={"fields": {"key": model.key, "bytes": model.bytes}})

    def fail_all(self, why: str, models: Iterable[Model] | None = None) -> None:
        """Answer everything that waits with an error."""
        for model in self.all() if models is None else models:
            if model.engine is not None:
                model.engine.fail_all(why)

    def end(self, why: str) -> None:
        """Answer everybody who waits for a load with ``why``, and begin no other."""
        self._ended = why
        for task in self._running:
            task.cancel()

    async def stop(self) -> None:
        """End every engine thread that has loaded; nothing is drained."""
        for model in self.all():
            # One that still loads cannot be stopped.
            if model.engine is None or not model.engine.loaded.done():
                continue
            if not await asyncio.to_thread(model.engine.stop, STOP_SECONDS):
                log.warning("an engine thread did not end", extra={"fields": {"key": model.key}})
        for task in self._leaving.values():
            task.cancel()

    def _not_own(self, key: str) -> None:
        if key == OWN:
            raise Refusal(
                "invalid_request",
                f"the key {OWN} is for the model that the process was started with, which only a new process replaces: "
                "choose another key",
            )


def _labels(config: WorkerConfig, loaded: Loaded) -> dict[str, str]:
    """What the info metric tells of a model."""
    facts = {
        "model_sha256": "modelSha256",
        "tokenizer_sha256": "tokenizerSha256",
        "architecture": "architecture",
        "device": "device",
        "precision": "precision",
    }
    told = {label: str(loaded.info.get(fact, "")) for label, fact in facts.items()}
    # Of a path only the last part: the rest is of the machine.
    return {"model": config.model.repo or Path(str(config.model.path)).name, **told}


def _live(loaded: Loaded, engine: EngineThread) -> dict[str, Any]:
    speed = engine.tokens_per_second
    return loaded.live() | {"capacityTokensPerSecond": None if speed is None else round(speed)}


def weight_bytes(config: WorkerConfig) -> int:
    """The size of a model's weights on disk, downloaded first where the hub has them. Raises a StartupFailure."""
    folder: Path = source.resolve(config.model)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _refusal(failure: StartupFailure) -> Refusal:
    wrong = isinstance(failure, ConfigurationFailure)
    return Refusal("invalid_request" if wrong else "unavailable", failure.sentence)


async def _until(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
