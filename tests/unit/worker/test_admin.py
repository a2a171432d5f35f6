"""Several models in one process: who may load and unload, what is refused, and that the others go on serving."""

import asyncio
import gc
import hashlib
import signal
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rerank_api.worker_config import WorkerConfig
from rerank_worker.engine import EngineLost, Pair
from rerank_worker.failures import ConfigurationFailure, EnvironmentFailure, StartupFailure
from rerank_worker.loading.model import Loaded
from rerank_worker.server.admin import FileToken, read_token
from rerank_worker.server.models import Limits

from .conftest import WAIT, ObedientEngine, Running, Serve, make_loaded, until

TOKEN = "a-long-random-token"
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()
SCORE = {"query": "q", "documents": ["abc"]}


class Fleet:
    """Folders of models and the engines that loading them gives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engines: dict[str, list[ObedientEngine]] = {}
        self.failures: dict[str, list[BaseException]] = {}
        """Raised by the next loads of a model, first to last."""
        self.gates: dict[str, Any] = {}
        self.loads: list[str] = []
        self.token_file = folder / "token"
        self.token_file.write_text(TOKEN + "\n")

    def config(self, name: str, size: int = 1000, **settings: Any) -> dict[str, Any]:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"w" * size)
        return {"model": {"path": str(folder)}, **settings}

    def load(self, config: WorkerConfig) -> Loaded:
        name = Path(str(config.model.path)).name
        self.loads.append(name)
        engine = ObedientEngine(name=name)
        if name in self.gates:
            assert self.gates[name].wait(WAIT)
        if self.failures.get(name):
            raise self.failures[name].pop(0)
        self.engines.setdefault(name, []).append(engine)
        offset = float(config.max_length or 0)
        engine.score = lambda pair: len(pair) + offset
        loaded = make_loaded(engine)
        return replace(loaded, info=loaded.info | {"memoryBytes": 2000, "model": name})


class Admin:
    """Calls of a worker with the token."""

    def __init__(self, worker: Running) -> None:
        self.worker = worker

    async def call(
        self, method: str, key: str, body: Any = None, token: str | None = TOKEN, **headers: str
    ) -> tuple[int, Any]:
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        content = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.worker.client.request(method, f"/v1/models/{key}", headers=headers, **content) as response:
            return response.status, await response.json()

    async def put(self, key: str, config: Any, **headers: str) -> tuple[int, Any]:
        return await self.call("PUT", key, config, **headers)

    async def delete(self, key: str, **headers: str) -> tuple[int, Any]:
        return await self.call("DELETE", key, **headers)

    async def score(self, key: str, **headers: str) -> tuple[int, Any]:
        return await self.call("POST", f"{key}/score", SCORE, token=None, **headers)

    async def states(self) -> dict[str, list[str]]:
        async with self.worker.client.get("/v1/models") as response:
            assert response.status == 200
            found: dict[str, list[str]] = {}
            for model in (await response.json())["models"]:
                found.setdefault(model["key"], []).append(model["state"])
            return found


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


async def start(
    serve: Serve,
    fleet: Fleet,
    limits: Limits | None = None,
    stall_limit: float = 60.0,
    by: str = "file",
    **arguments: Any,
) -> Admin:
    options = known(fleet, by) | {
        "models": limits or Limits(models=3, bytes=100_000),
        "stall_limit": stall_limit,
    }
    return Admin(await serve(load=fleet.load, options=options, **arguments))


async def test_models_are_loaded_scored_listed_and_unloaded(serve: Serve, fleet: Fleet) -> None:
    admin = await start(serve, fleet)
    status, facts = await admin.put("a", fleet.config("a"))
    assert (status, facts["state"], facts["memoryBytes"]) == (200, "ready", 2000)
    assert (await admin.put("b", fleet.config("b", maxLength=5)))[0] == 200
    assert await admin.states() == {"default": ["ready"], "a": ["ready"], "b": ["ready"]}
    assert (await admin.score("a"))[1]["scores"] == [7]
    assert (await admin.score("b"))[1]["scores"] == [12]
    assert (await admin.worker.score(SCORE))[0] == 200
    assert admin.worker.metric("rerank_worker_models", state="ready") == 3
    assert await admin.delete("a") == (200, {"key": "a", "state": "unloaded"})
    assert (await admin.score("a"))[0] == 404
    assert (await admin.delete("a"))[0] == 404
    assert await admin.states() == {"default": ["ready"], "b": ["ready"]}


async def test_the_same_configuration_is_loaded_once(serve: Serve, fleet: Fleet) -> None:
    admin = await start(serve, fleet)
    answers = await asyncio.gather(*(admin.put("a", fleet.config("a")) for _ in range(4)))
    assert [status for status, _ in answers] == [200] * 4
    assert fleet.loads.count("a") == 1


async def test_a_swap_serves_with_the_old_model_until_the_new_one_has_scored(serve: Serve, fleet: Fleet) -> None:
    admin = await start(serve, fleet)
    assert (await admin.put("a", fleet.config("a")))[0] == 200
    gate = fleet.gates["a"] = threading.Event()
    swap = asyncio.create_task(admin.put("a", fleet.config("a", maxLength=9)))
    await until(lambda: fleet.loads.count("a") == 2)
    assert (await admin.score("a"))[1]["scores"] == [7]
    assert (await admin.worker.score(SCORE))[0] == 200
    # A request that the old model still computes is finished by it.
    old = fleet.engines["a"][0]
    old.open.clear()
    running = asyncio.create_task(admin.score("a"))
    await until(lambda: old.computing == 1)
    gate.set()
    assert (await swap)[0] == 200
    assert await admin.states() == {"default": ["ready"], "a": ["ready", "draining"]}
    old.open.set()
    assert (await running)[1]["scores"] == [7]
    assert (await admin.score("a"))[1]["scores"] == [16]
    async with asyncio.timeout(WAIT):
        while await admin.states() != {"default": ["ready"], "a": ["ready"]}:
            pass


async def test_a_swap_that_fails_leaves_the_old_model_serving(serve: Serve, fleet: Fleet) -> None:
    admin = await start(serve, fleet)
    assert (await admin.put("a", fleet.config("a")))[0] == 200
    fleet.failures["a"] = [ConfigurationFailure("spec.model.maxLength is 9: too long")]
    status, body = await admin.put("a", fleet.config("a", maxLength=9))
    assert (status, body["code"], body["message"]) == (400, "invalid_request", "spec.model.maxLength is 9: too long")
    assert (await admin.score("a"))[1]["scores"] == [7]
    assert await admin.states() == {"default": ["ready"], "a": ["ready"]}


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (ConfigurationFailure("spec.model.uri: bad"), 400),
        (EnvironmentFailure("out of memory"), 503),
        (ValueError("odd"), 503),
    ],
)
async def test_a_load_that_fails_says_why_and_can_be_tried_again(
    serve: Serve, fleet: Fleet, failure: Exception, status: int
) -> None:
    admin = await start(serve, fleet)
    fleet.failures["a"] = [failure]
    found, body = await admin.put("a", fleet.config("a"))
    assert found == status
    assert str(failure) in body["message"]
    assert await admin.states() == {"default": ["ready"], "a": ["failed"]}
    found, body = await admin.score("a")
    assert found == 503
    assert str(failure) in body["message"]
    assert (await admin.worker.get("/healthz"))[0] == 200
    assert (await admin.put("a", fleet.config("a")))[0] == 200
    assert (await admin.score("a"))[0] == 200


async def test_a_folder_that_is_not_there(serve: Serve, fleet: Fleet) -> None:
    admin = await start(serve, fleet)
    status, body = await admin.put("a", {"model": {"path": str(fleet.folder / "none")}})
    assert (status, body["code"]) == (400, "invalid_request")
    assert "does not exist" in body["message"]
    assert fleet.loads == ["obedient"]


async def test_what_is_there_already_is_answered_while_another_model_loads(serve: Serve, fleet: Fleet) -> None:
    """It waited for the other one's load, though nothing was to be done."""
    admin = await start(serve, fleet)
    assert (await admin.put("a", fleet.config("a")))[0] == 200
    gate = fleet.gates["b"] = threading.Event()
    other = asyncio.create_task(admin.put("b", fleet.config("b")))
    await until(lambda: "b" in fleet.loads)
    status, facts = await admin.put("a", fleet.config("a"), **{"X-Rerank-Timeout-Ms": "2000"})
    assert (status, facts["state"]) == (200, "ready")
    assert fleet.loads.count("a") == 1
    gate.set()
    assert (await other)[0] == 200


async def test_a_model_that_is_about_to_be_swapped_is_not_there_for_good(serve: Serve, fleet: Fleet) -> None:
    admin = await start(serve, fleet)
    assert (await admin.put("a", fleet.config("a")))[0] == 200
    gate = fleet.gates["a"] = threading.Event()
    swap = asyncio.create_task(admin.put("a", fleet.config("a", maxLength=9)))
    await until(lambda: fleet.loads.count("a") == 2)
    back = asyncio.create_task(admin.put("a", fleet.config("a")))
    await until(lambda: bool(admin.worker.server.models._loads._waiters))
    gate.set()
    assert [(await swap)[0], (await back)[0]] == [200, 200]
    assert (await admin.score("a"))[1]["scores"] == [7], "the last one that was asked for"


async def test_a_model_that_loads_is_not_unloaded_and_the_answer_comes_at_once(serve: Serve, fleet: Fleet) -> None:
    """A DELETE waited for the load, and was answered after its own deadline only."""
    admin = await start(serve, fleet)
    gate = fleet.gates["a"] = threading.Event()
    loading = asyncio.create_task(admin.put("a", fleet.config("a")))
    await until(lambda: "a" in fleet.loads)
    status, body = await admin.delete("a")
    assert (status, body["code"]) == (409, "loading")
    assert "GET /v1/models" in body["message"]
    gate.set()
    assert (await loading)[0] == 200
    assert (await admin.delete("a"))[0] == 200


async def test_a_model_that_is_downloaded_is_listed(
    serve: Serve, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def download(_: WorkerConfig) -> int:
        assert gate.wait(WAIT)
        return 1000

    monkeypatch.setattr("rerank_worker.server.models.weight_bytes", download)
    admin = await start(serve, fleet)
    loading = asyncio.create_task(admin.put("a", fleet.config("a")))
    await until(lambda: len(admin.worker.server.models.all()) == 2)
    assert await admin.states() == {"default": ["ready"], "a": ["loading"]}
    assert (await admin.delete("a"))[0] == 409
    gate.set()
    assert (await loading)[0] == 200


async def test_models_that_could_not_be_loaded_take_no_room_and_are_few(serve: Serve, fleet: Fleet) -> None:
    """Each of them counted against --max-models until it was unloaded."""
    admin = await start(serve, fleet, Limits(models=2, bytes=100_000))
    for number in range(5):
        fleet.failures["bad"] = [ConfigurationFailure("spec.model.uri: bad")]
        assert (await admin.put(f"bad-{number}", fleet.config("bad")))[0] == 400
    assert (await admin.put("a", fleet.config("a")))[0] == 200
    assert (await admin.put("b", fleet.config("b")))[0] == 507
    states = await admin.states()
    assert states == {"default": ["ready"], "bad-3": ["failed"], "bad-4": ["failed"], "a": ["ready"]}


async def test_too_many_models_are_refused_before_anything_is_loaded(serve: Serve, fleet: Fleet) -> None:
    admin = await start(serve, fleet, Limits(models=2, bytes=100_000))
    assert (await admin.put("a", fleet.config("a")))[0] == 200
    status, body = await admin.put("b", fleet.config("b"))
    assert (status, body["code"]) == (507, "no_room")
    assert "2 models" in body["message"]
    # One in place of another is no further model.
    assert (await admin.put("a", fleet.config("a", maxLength=7)))[0] == 200
    assert "b" not in fleet.loads
    await admin.delete("a")
    assert (await admin.put("b", fleet.config("b")))[0] == 200


async def test_too_many_bytes_are_refused_with_figures(serve: Serve, fleet: Fleet) -> None:
    admin = await start(serve, fleet, Limits(models=8, bytes=7000))
    assert (await admin.put("a", fleet.config("a", 3000)))[0] == 200
    status, body = await admin.put("b", fleet.config("b", 3500))
    assert (status, body["code"]) == (507, "no_room")
    # The model that was started with took 2000 by measurement; a mapped one may still take its size on disk.
    for figure in ("3500 bytes", "5000", "limit 7000"):
        assert figure in body["message"]
    # A swap needs room beside the old model too.
    assert (await admin.put("a", fleet.config("a", 3500, maxLength=7)))[0] == 507
    assert (await admin.score("a"))[0] == 200
    assert (await admin.put("b", fleet.config("b", 2000)))[0] == 200


async def test_loads_are_one_at_a_time_and_wait_no_longer_than_they_may(serve: Serve, fleet: Fleet) -> None:
    admin = await start(serve, fleet)
    gate = fleet.gates["a"] = threading.Event()
    first = asyncio.create_task(admin.put("a", fleet.config("a")))
    await until(lambda: "a" in fleet.loads)
    status, body = await admin.put("b", fleet.config("b"), **{"X-Rerank-Timeout-Ms": "50"})
    assert (status, body["code"]) == (504, "deadline")
    status, body = await admin.put("a", fleet.config("a"), **{"X-Rerank-Timeout-Ms": "50"})
    assert (status, body["code"]) == (504, "deadline")
    assert (await admin.score("a"))[0] == 503
    assert (await admin.worker.score(SCORE))[0] == 200
    assert await admin.states() == {"default": ["ready"], "a": ["loading"]}
    gate.set()
    assert (await first)[0] == 200
    assert fleet.loads == ["obedient", "a"]


async def test_a_load_goes_on_when_its_client_stops_waiting(serve: Serve, fleet: Fleet) -> None:
    admin = await start(serve, fleet)
    gate = fleet.gates["a"] = threading.Event()
    status, body = await admin.put("a", fleet.config("a"), **{"X-Rerank-Timeout-Ms": "300"})
    assert (status, body["code"]) == (504, "deadline")
    gate.set()
    assert (await admin.put("a", fleet.config("a")))[0] == 200
    assert fleet.loads.count("a") == 1


async def test_unloading_lets_requests_finish_within_bounds(
    serve: Serve, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerank_worker.server.models.DRAIN_SECONDS", 0.2)
    admin = await start(serve, fleet)
    await admin.put("a", fleet.config("a"))
    engine = fleet.engines["a"][0]
    engine.open.clear()
    requests = [asyncio.create_task(admin.score("a"))]
    await until(lambda: engine.computing == 1)
    requests.append(asyncio.create_task(admin.score("a")))
    await until(lambda: admin.worker.server.models.get("a").in_flight == 2)
    unload = asyncio.create_task(admin.delete("a"))
    # What still waits when the time is over is told so; the thread ends once its batch does.
    assert [(await request)[0] for request in requests] == [503, 503]
    engine.open.set()
    assert (await unload)[0] == 200
    assert await admin.states() == {"default": ["ready"]}


async def test_a_batch_that_takes_long_is_waited_for_when_its_model_is_unloaded(
    serve: Serve, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerank_worker.server.models.DRAIN_SECONDS", 0.05)
    monkeypatch.setattr("rerank_worker.server.models.STOP_SECONDS", 0.05)
    admin = await start(serve, fleet)
    await admin.put("a", fleet.config("a"))
    engine = fleet.engines["a"][0]
    engine.open.clear()
    request = asyncio.create_task(admin.score("a"))
    await until(lambda: engine.computing == 1)
    status, body = await admin.delete("a", **{"X-Rerank-Timeout-Ms": "500"})
    assert (status, body["code"]) == (504, "deadline")
    assert await admin.states() == {"default": ["ready"], "a": ["draining"]}
    assert (await request)[0] == 503
    engine.open.set()
    await until(lambda: len(admin.worker.server.models.all()) == 1)
    # The others live on.
    assert (await admin.worker.get("/healthz"))[0] == 200
    assert (await admin.put("a", fleet.config("a")))[0] == 200


async def test_an_engine_that_stalls_while_it_is_unloaded_is_told_and_kept_in_the_books(
    serve: Serve, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerank_worker.server.models.DRAIN_SECONDS", 0.05)
    monkeypatch.setattr("rerank_worker.server.models.STOP_SECONDS", 0.05)
    monkeypatch.setattr("rerank_worker.scheduler.IDLE_BEAT", 0.02)
    admin = await start(serve, fleet, stall_limit=1.0)
    await admin.put("a", fleet.config("a"))
    engine = fleet.engines["a"][0]
    engine.open.clear()
    request = asyncio.create_task(admin.score("a"))
    await until(lambda: engine.computing == 1)
    status, body = await admin.delete("a")
    assert (status, body["code"]) == (500, "internal")
    assert await admin.states() == {"default": ["ready"], "a": ["draining"]}
    assert (await admin.worker.get("/healthz"))[0] == 503
    engine.open.set()
    await request


async def test_the_memory_of_an_unloaded_model_is_free(serve: Serve, fleet: Fleet) -> None:
    admin = await start(serve, fleet)
    await admin.put("a", fleet.config("a"))
    await admin.score("a")
    engine = weakref.ref(fleet.engines.pop("a")[0])
    tokenizer = weakref.ref(admin.worker.server.models.get("a").ready()._tokenizer)
    await admin.delete("a")
    gc.collect()
    assert engine() is None
    assert tokenizer() is None


async def test_a_lost_engine_of_one_model_needs_a_new_process(serve: Serve, fleet: Fleet) -> None:
    admin = await start(serve, fleet)
    await admin.put("a", fleet.config("a"))

    def lose(_: Pair) -> float:
        raise EngineLost("device gone")

    fleet.engines["a"][0].score = lose
    assert (await admin.score("a"))[0] == 503
    status, text = await admin.worker.get("/healthz")
    assert status == 503
    assert "model a" in text
    status, body = await admin.put("a", fleet.config("a"))
    assert (status, body["code"]) == (503, "unavailable"), "nobody is told that it serves"


async def test_without_a_token_file_the_calls_are_off(serve: Serve, fleet: Fleet) -> None:
    admin = Admin(await serve(load=fleet.load))
    for method in ("PUT", "DELETE"):
        status, body = await admin.call(method, "a", fleet.config("a"))
        assert (status, body["code"]) == (404, "not_found")
        assert "--admin-token-file" in body["message"]
    assert await admin.states() == {"default": ["ready"]}
    assert fleet.loads == ["obedient"]


def known(fleet: Fleet, by: str) -> dict[str, Any]:
    """Options by which a worker knows the token."""
    if by == "file":
        return {"admin_token_file": str(fleet.token_file)}
    return {"admin_token_sha256": DIGEST}


@pytest.mark.parametrize("by", ["file", "checksum"])
@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer ünï"]
)
async def test_the_wrong_token(serve: Serve, fleet: Fleet, header: str | None, by: str) -> None:
    admin = await start(serve, fleet, by=by)
    headers = {} if header is None else {"Authorization": header}
    status, body = await admin.call("PUT", "a", fleet.config("a"), token=None, **headers)
    assert (status, body["code"]) == (401, "unauthorized")
    sent = (header or "").startswith("Bearer")
    assert ("not the one that this worker was started with" in body["message"]) == sent
    assert ("Authorization: Bearer TOKEN" in body["message"]) != sent
    assert admin.worker.metric("rerank_worker_admin_refused_requests_total") == 1
    assert fleet.loads == ["obedient"]


async def test_a_worker_that_knows_the_checksum_only_takes_the_token(serve: Serve, fleet: Fleet) -> None:
    admin = await start(serve, fleet, by="checksum", standby=True)
    assert (await admin.put("a", fleet.config("a")))[0] == 200
    assert (await admin.delete("a"))[0] == 200


@pytest.mark.parametrize(
    ("digest", "header", "expected"),
    [
        (DIGEST, f"Bearer {TOKEN}", True),
        (DIGEST.upper(), f"bearer {TOKEN}", True),
        (DIGEST, f"Bearer {DIGEST}", False),
        (DIGEST, TOKEN, False),
        (DIGEST, None, False),
    ],
)
def test_the_token_with_a_checksum(digest: str, header: str | None, expected: bool) -> None:
    token = read_token(None, digest)
    assert token is not None
    assert token.matches(header) == expected


@pytest.mark.parametrize(
    "given", [TOKEN, DIGEST[1:], DIGEST + "0", DIGEST[1:] + "g", DIGEST[1:] + "\n", "sha256:" + DIGEST]
)
def test_what_is_no_checksum_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(ConfigurationFailure, match=r"\$RERANK_ADMIN_TOKEN_SHA256 .*64 hexadecimal digits") as refused:
        read_token(None, given)
    assert given.strip() not in str(refused.value)


def test_the_checksum_of_nothing_is_refused() -> None:
    """What an empty variable gives to sha256sum: everybody who sends no token would have it."""
    with pytest.raises(ConfigurationFailure, match="of an empty token"):
        read_token(None, hashlib.sha256(b"").hexdigest())


def test_the_token_is_known_in_one_way(fleet: Fleet) -> None:
    assert read_token(None, None) is None
    with pytest.raises(ConfigurationFailure, match="keep one of them"):
        read_token(str(fleet.token_file), DIGEST)


def test_the_token_follows_its_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    token = FileToken(str(file))
    assert token.matches("Bearer first")
    assert token.matches("bearer first")
    file.write_text("the second")
    assert not token.matches("Bearer first")
    assert token.matches("Bearer the second")
    file.write_text("")
    assert not token.matches("Bearer ")
    file.unlink()
    assert not token.matches("Bearer the second")
    assert not token.matches(None)
    file.write_text("third")
    assert token.matches("Bearer third")


@pytest.mark.parametrize("make", [lambda file: None, lambda file: file.write_text(" \n")])
def test_a_token_file_without_a_token_is_refused(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path / "token")
    with pytest.raises(StartupFailure, match="--admin-token-file"):
        FileToken(str(tmp_path / "token"))


@pytest.mark.parametrize(
    ("key", "body", "message"),
    [
        ("default", {"model": {"path": "/m"}}, "choose another key"),
        ("a%20b", {"model": {"path": "/m"}}, "letters, digits"),
        ("a", b"{", "not valid JSON"),
        ("a", {"model": {"path": "/m"}, "new": 1}, "unknown field `new`: the fields are model, namespace, "),
        ("a", {"model": {"path": "/m", "uri": "x"}}, "the fields are path, repo, revision, sha256"),
        ("a", {"model": {"path": "/m"}, "device": "tpu"}, "'tpu' - at `$.device`: write one of auto, cuda, cpu"),
        ("a", {"model": {"path": "/m"}, "maxLength": "long"}, "`$.maxLength`"),
        ("a", {"model": {"path": "/m", "sha256": {"f": 1}}}, "`$.model.sha256[...]`"),
        ("a", {}, "`model`"),
        ("a", {"model": {"path": "/m"}, "temperature": 0}, "spec.model.temperature"),
        ("a", {"model": {}}, "exactly one of path and repo"),
    ],
)
async def test_bad_calls(serve: Serve, fleet: Fleet, key: str, body: Any, message: str) -> None:
    admin = await start(serve, fleet)
    status, answer = await admin.put(key, body)
    assert (status, answer["code"]) == (400, "invalid_request")
    assert message in answer["message"]


async def test_a_worker_that_stands_by(serve: Serve, fleet: Fleet) -> None:
    admin = await start(serve, fleet, standby=True)
    worker = admin.worker
    assert (await worker.get("/readyz"))[0] == 200
    status, body, _ = await worker.score(SCORE)
    assert (status, body["code"]) == (503, "unavailable")
    assert "PUT /v1/models/{key}" in body["message"]
    assert (await admin.put("a", fleet.config("a")))[0] == 200
    assert (await admin.score("a"))[1]["scores"] == [7]
    assert (await admin.delete("a"))[0] == 200
    assert (await worker.get("/readyz"))[0] == 200


async def test_a_draining_worker_takes_no_models(serve: Serve, fleet: Fleet) -> None:
    admin = await start(serve, fleet)
    admin.worker.server.terminate(signal.SIGTERM)
    await admin.worker.server.drain()
    status, body = await admin.put("a", fleet.config("a"))
    assert (status, body["code"]) == (503, "unavailable")


async def test_who_waits_for_a_load_is_answered_when_the_worker_ends(serve: Serve, fleet: Fleet) -> None:
    """Regression: their connections were cut."""
    admin = await start(serve, fleet)
    gate = fleet.gates["a"] = threading.Event()
    waiting = [asyncio.create_task(admin.put("a", fleet.config("a")))]
    await until(lambda: "a" in fleet.loads)
    waiting.append(asyncio.create_task(admin.put("b", fleet.config("b"))))
    await until(lambda: bool(admin.worker.server.models._loads._waiters))
    await admin.worker.server.stop()
    for call in waiting:
        status, body = await call
        assert (status, body["code"]) == (503, "unavailable")
        assert "shutting down" in body["message"]
    gate.set()
    assert "b" not in fleet.loads


async def test_the_model_of_the_start_and_others_load_one_after_the_other(serve: Serve, fleet: Fleet) -> None:
    """Regression: what one load took was counted as the other's, and it turned the other's download off."""
    gate = fleet.gates["obedient"] = threading.Event()
    admin = await start(serve, fleet, ready=False)
    loading = asyncio.create_task(admin.worker.server.become_ready())
    await until(lambda: fleet.loads == ["obedient"])
    status, body = await admin.put("a", fleet.config("a"), **{"X-Rerank-Timeout-Ms": "100"})
    assert (status, body["code"]) == (504, "deadline")
    assert fleet.loads == ["obedient"]
    gate.set()
    await loading
    assert (await admin.put("a", fleet.config("a")))[0] == 200
