"""The chart rendered by real Helm, without a cluster."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.cluster import BIN
from harness.release import CHART

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """The manifests of one ``helm template``."""

    manifests: list[Manifest]

    def of(self, kind: str) -> list[Manifest]:
        return [m for m in self.manifests if m["kind"] == kind]

    def one(self, kind: str, name: str) -> Manifest:
        found = [m for m in self.of(kind) if m["metadata"]["name"] == name]
        assert len(found) == 1, f"{kind} {name} among {[m['metadata']['name'] for m in self.of(kind)]}"
        return found[0]


class Refused(Exception):
    """Helm did not render; the message is Helm's."""


Render = Callable[..., Rendered]


@pytest.fixture(scope="session")
def helm() -> str:
    found = shutil.which("helm", path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.fail("there is no helm: `make setup` builds it into .state/bin")
    return found


@pytest.fixture(scope="session")
def render(helm: str, tmp_path_factory: pytest.TempPathFactory) -> Render:
    """``render(values, release=...)``: the manifests, or Refused with Helm's message."""
    folder: Path = tmp_path_factory.mktemp("values")
    known: dict[str, Rendered] = {}

    def render(
        values: Mapping[str, Any] | None = None, release: str = "rerank-operator", namespace: str = "rerank-system"
    ) -> Rendered:
        text = json.dumps(values or {})
        key = f"{release} {namespace} {text}"
        if key not in known:
            path = folder / f"{len(known)}.json"
            path.write_text(text)
            command = [helm, "template", release, str(CHART), "--namespace", namespace, "--values", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            if done.returncode != 0:
                raise Refused(done.stderr)
            known[key] = Rendered([m for m in yaml.safe_load_all(done.stdout) if m])
        return known[key]

    return render
