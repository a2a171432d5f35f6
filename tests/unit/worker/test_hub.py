"""hf:// models: a download from a hub that this test imitates, at the pinned revision, and its failures in words."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"architectures": ["BertForSequenceClassification"]}',
    "tokenizer.json": b"{}",
    "vocab.txt": b"[PAD]",
    "model.safetensors": b"weights" * 1000,
    "pytorch_model.bin": b"pickled",
    "modeling.py": b"raise SystemExit",
    "onnx/config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "1_LogitScore/config.json": b'{"true_token_id": 1}',
    "1_LogitScore/more.bin": b"pickled",
}


@dataclass
class Hub:
    """The few answers of a hub that snapshot_download needs."""

    server: ThreadingHTTPServer
    paths: list[str] = field(default_factory=list)
    status: int = 200
    """What every request is answered with when it is not 200."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            running.paths.append(path)
            if running.status != 200:
                self._answer(running.status, b"{}", {"X-Error-Message": "imitated"})
            elif path in {f"/api/models/org/name/revision/{COMMIT}", "/api/models/org/name"}:
                siblings = [{"rfilename": name} for name in FILES]
                self._json({"_id": "1", "id": "org/name", "sha": COMMIT, "siblings": siblings, "private": False})
            elif path == f"/api/models/org/name/tree/{COMMIT}":
                self._json([{"type": "file", "path": n, "size": len(c), "oid": _oid(c)} for n, c in FILES.items()])
            elif (name := path.removeprefix(f"/org/name/resolve/{COMMIT}/")) in FILES:
                self._answer(200, FILES[name], {"ETag": f'"{_oid(FILES[name])}"', "X-Repo-Commit": COMMIT})
            elif path.startswith(("/api/models/org/name/", "/org/name/")):
                self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            else:
                self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def _json(self, content: object) -> None:
            self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running = Hub(server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield running
    server.shutdown()
    server.server_close()


def _oid(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:40]


def resolve(endpoint: str, home: Path, model: str, then: str = "") -> subprocess.CompletedProcess[str]:
    """Resolve the source (JSON), and run more code, in a process of its own: the library reads its environment once."""
    code = (
        "import sys, time, msgspec\n"
        "time.sleep = lambda seconds: None\n"  # the library's pauses between its tries
        "from rerank_api.worker_config import ModelSource\n"
        "from rerank_worker.failures import StartupFailure\n"
        "from rerank_worker.loading import source\n"
        "model = msgspec.json.decode(sys.argv[1], type=ModelSource)\n"
        "try:\n"
        "    folder = source.resolve(model)\n"
        "except StartupFailure as failure:\n"
        "    print(failure.sentence)\n"
        "    sys.exit(failure.exit_code)\n"
        "print(folder)\n"
        "print(source.resolved_revision(model, folder))\n"
    ) + then
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, model], env=environment, capture_output=True, text=True, timeout=60
    )


def test_a_pinned_revision_is_downloaded_without_code(hub: Hub, tmp_path: Path) -> None:
    ended = resolve(hub.endpoint, tmp_path, json.dumps({"repo": "org/name", "revision": COMMIT}))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    folder, revision = ended.stdout.splitlines()
    assert revision == COMMIT
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
    }
    wanted = {"config.json", "tokenizer.json", "vocab.txt", "model.safetensors"}
    wanted |= {"chat_template.jinja", "1_LogitScore/config.json"}
    assert found == {name: FILES[name] for name in wanted}
    assert not any(path.endswith((".bin", ".py")) for path in hub.paths)


def test_a_second_start_needs_no_download(hub: Hub, tmp_path: Path) -> None:
    model = json.dumps({"repo": "org/name", "revision": COMMIT})
    assert resolve(hub.endpoint, tmp_path, model).returncode == 0
    hub.paths.clear()
    assert resolve(hub.endpoint, tmp_path, model).returncode == 0
    assert not any(path.endswith("model.safetensors") for path in hub.paths)


def test_nothing_is_asked_of_the_hub_once_the_download_is_over(hub: Hub, tmp_path: Path) -> None:
    model = json.dumps({"repo": "org/name", "revision": COMMIT})
    ask = "source.go_offline()\nfrom huggingface_hub import HfApi\nHfApi().model_info('org/later')\n"
    ended = resolve(hub.endpoint, tmp_path, model, ask)
    assert "OfflineModeIsEnabled" in ended.stderr
    assert not any("later" in path for path in hub.paths)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"repo": "org/name", "revision": "f" * 40}, "spec.model.revision: hf://org/name has no revision"),
        ({"repo": "org/other", "revision": COMMIT}, "spec.model.uri: the hub has no repository org/other"),
        ({"repo": "not a name", "revision": COMMIT}, "spec.model.uri: 'not a name' is not a hub repository name"),
    ],
)
def test_what_the_hub_does_not_have(hub: Hub, tmp_path: Path, model: dict[str, str], sentence: str) -> None:
    ended = resolve(hub.endpoint, tmp_path, json.dumps(model))
    assert ended.returncode == 64, ended.stdout + ended.stderr
    assert ended.stdout.startswith(sentence)


def test_an_unreachable_hub_may_pass(tmp_path: Path) -> None:
    ended = resolve("http://127.0.0.1:9", tmp_path, json.dumps({"repo": "org/name", "revision": COMMIT}))
    assert ended.returncode == 71, ended.stdout + ended.stderr
    assert ended.stdout.startswith("cannot download hf://org/name at revision")
    assert "HF_ENDPOINT" in ended.stdout
