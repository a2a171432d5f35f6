"""Every command of every runbook, as it is written, on a cluster: what looks prints what it is to show, what acts acts.

A command is a line of a ```sh block (a loop is one), or a `kubectl ...` or `helm ...` in the text, and the command that
an alert's annotation ``look`` names. Placeholders are filled in as a reader would. Looking is done at a Reranker of the
genuine model, acting at another one, which is put back before each.
"""

import functools
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml
from harness import paced
from harness.canaries import golden_set
from harness.cluster import ROOT, STATE, VENV_BIN, Cluster, run, wait_for
from harness.paced import Profile
from harness.promtool import RULES
from harness.release import SYSTEM_NAMESPACE, Release, condition, is_ready, reranker, wait_settled, warm_pool

# It kills a worker by its pid, and paced workers are found on this machine's PATH.
pytestmark = [pytest.mark.local_only, pytest.mark.timeout(400)]

RUNBOOKS = ROOT / "docs" / "runbooks"
PAGES = sorted(path.stem for path in RUNBOOKS.glob("*.md"))
OPERATIONS = "operations"
"""docs/operations.md, of which the blocks are run."""
OF_THE_RELEASE = ("RerankGatewayDown", "RerankOperatorWithoutLeader")
"""Runbooks in which NS is where the chart is installed."""
GOOD, SPARE, ASLEEP, POOL = "products", "spare", "asleep", "shared"
"""Rerankers to look at, to act at, and to be woken from the WarmPool."""
QUERY = "how to list files"
MAX_LENGTH = 64
PROFILE = Profile(tokens_per_second=0)
SECONDS = 150.0
"""For what a command has brought about, on a machine that may be busy."""
N, TOKENS = 2, 64
"""What N is: workers, and tokens of a batch, which are others than SCALING's and the default."""
SCALING = {"minReplicas": 1, "maxReplicas": 4}
CANARY = {"strategy": "Canary", "steps": [50], "stepDuration": "24h", "mirrorPercent": 0}
"""Goes nowhere by itself."""

# --- what is written ---


def of_block(block: str) -> Iterator[str]:
    """Its commands. A loop is one; so is what goes on behind a backslash or a ``|``; a line that ends in & belongs to
    the next one, which needs what it starts."""
    held: list[str] = []
    for line in block.strip().splitlines():
        held.append(re.sub(r"\s+# .*", "", line))
        text = "\n".join(held)
        within = text.startswith("for ") and not text.endswith("done")
        if not within and not text.endswith(("\\", "|", "&")):
            yield text
            held = []
    assert not held, held


def commands_of(text: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    spans = [span.replace(r"\|", "|") for span in re.findall(r"`((?:kubectl|helm) [^`]+)`", prose)]
    return [command for block in blocks for command in of_block(block)] + [
        span for span in spans if not span.startswith("kubectl rerank") or " NAME" in span
    ]


def looks() -> dict[str, str]:
    """By alert, in the runbooks' placeholders."""
    words_of = {"namespace": "NS", "reranker": "NAME", "revision": "REVISION", "pool": "POOL"}
    groups = yaml.safe_load((RULES / "alerts.yaml").read_text())["groups"]
    return {
        rule["alert"]: re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda m: words_of[m[1]], rule["annotations"]["look"])
        for group in groups
        for rule in group["rules"]
    }


def written() -> dict[str, list[str]]:
    """Every command by page, each once."""
    told = looks()
    found = {page: commands_of((RUNBOOKS / f"{page}.md").read_text()) for page in PAGES}
    for page, look in told.items():
        found[page].append(look)
    operations = (ROOT / "docs" / f"{OPERATIONS}.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", operations, re.DOTALL)
    found[OPERATIONS] = [command for block in blocks for command in of_block(block)]
    return {page: list(dict.fromkeys(commands)) for page, commands in found.items()}


WRITTEN = written()

LEFT_OUT = {
    "kubectl rerank tune NAME -n NS": "measures for two minutes: test_kubectl_jobs.py runs it",
    "kubectl get podmonitors -A": "the Prometheus Operator, whose kind that is, is not on this cluster",
    "kubectl -n NS get hpa": "here is none, which it says on stderr",
}
"""Commands that are not run, and why."""
LEFT_OUT_PAGES = {"RerankKeysRefused": "the release of these tests has no API keys"}
MAY_PRINT_NOTHING = {
    "reason=Pulling": "no image is pulled here",
    "grep -i memory": "these workers have never run out of it",
}
"""Parts of looking commands, and why."""
READING = re.compile(
    r"^(for pod in .*\n  echo \$pod; kubectl -n \S+ port-forward|sha256sum |helm \S+ \S+ history|kubectl (-n \S+ )?"
    r"(get|events|describe|logs|wait|rollout status|auth can-i|port-forward|"
    r"rerank (status|history|samples|calibrate))\b)"
)
"""How a command begins that only looks."""
PRINTS: dict[str, tuple[str, ...]] = {
    r"describe reranker NAME$": ("Scaling", "Ready", "RankingQuality", "Events:"),
    r"rerank status NAME": ("serves", "REVISION", "nDCG@"),
    r"rerank history NAME": ("REVISION",),
    r"--revision REVISION": (f'"maxLength": {MAX_LENGTH}',),
    r"rerank samples": (QUERY,),
    r"rerank calibrate": ("temperature",),
    r"get pods -l rerank.dev/reranker=NAME": ("POD",),
    r"logs -l rerank.dev/reranker=NAME --tail=50": ("[pod/POD/worker]",),
    r"get rerankers -A": ("NAME",),
    r"get warmpools -A": ("POOL",),
    r"reason=WarmPodServing": (ASLEEP,),
    r"component=gateway": ("GATEWAYS",),
    r"get pods.*component=operator": ("OPERATORS",),
    r"logs .*component=operator": ("LEADER",),  # who stands by is silent
    r"component in \(gateway, operator": ("GATEWAYS", "OPERATORS"),
    r"\(requests\|": ('code="200"',),
    r"sli_good_requests": ('sli="availability"', 'sli="latency"'),
    r"truncated_requests": ("truncated_requests_total",),
    r"in_flight": ("waiting_requests", "in_flight_requests"),
    r"8081:8080": ("pod/POD",),
    r"worker_info": ("WEIGHTS", "TOKENIZER"),
    r"batch_budget": ("rerank_worker_batch_budget_tokens", "rerank_worker_peak_memory_bytes"),
    r"auth can-i": ("yes",),
    r"get lease": ("LEADER",),
    r"-A6 'Last State'": ("Last State:", "Terminated"),
    r"get reranker NAME( -o wide)?$": ("True",),
    r"{\.spec\.slo}": ("availability", "latency"),
    r"{\.spec\.scaling}": ("minReplicas", "maxReplicas"),
    r"{\.spec\.batching}": ("maxDelay",),
    r"{\.spec\.model}": ("uri",),
    r"{\.spec\.model\.maxLength}": (f"{MAX_LENGTH} truncate",),
    r"{\.spec\.replicas}": ("1 ",),
    r"goldenSet}": ("golden",),
    r"{\.status\.quality}": ("ndcg",),
    r"grep -B6 RankingQuality": ("GoodEnough",),
    r"v1/models": (GOOD,),
    r"sha256sum \*": ("WEIGHTS",),
    r"sha256sum .*tokenizer.json": ("TOKENIZER",),
    r"warm-pool=POOL|warmpool POOL": ("POOL",),
    r"rollout status": ("successfully rolled out",),
    r"helm .* history": ("deployed",),
}
"""By what is found in a looking command: what it prints, among others."""

# --- where it is run ---


@dataclass
class Stage:
    kube: Cluster
    release: Release
    namespace: str
    folder: Path
    """Of the model."""
    spare: dict[str, Any]
    """The manifest of SPARE."""
    done: set[str] = field(default_factory=set)
    """Commands, filled in: what several runbooks have is run once."""
    deleted: str = ""
    """The pod that was deleted last."""
    untouched: Any = None
    """What SPARE asks for where nothing was done to it."""

    @functools.cached_property
    def sums(self) -> dict[str, str]:
        names = {"TOKENIZER": "tokenizer.json", "FILE": "model.safetensors"}
        return {word: self.run(f"sha256sum {name}").split()[0] for word, name in names.items()}

    def words(self, page: str, name: str = GOOD) -> dict[str, str]:
        """Of placeholders, where the Reranker ``name`` is meant."""
        of_pool = page == "RerankWarmPoolEmpty"
        pods = self.pods(f"rerank.dev/warm-pool={POOL}" if of_pool else f"rerank.dev/reranker={name}")
        return {
            "NS": SYSTEM_NAMESPACE if page in OF_THE_RELEASE else self.namespace,
            "NAMESPACE": self.namespace,
            "NAME": name,
            "POOL": POOL,
            "POD": next((pod["metadata"]["name"] for pod in pods if is_ready(pod)), ""),
            "REVISION": self.get(name)["status"]["currentRevision"],
            **self.sums,
        }

    def seen(self) -> dict[str, list[str]]:
        """What else commands print, by its word in PRINTS."""
        weights = self.run("sha256sum *.safetensors | sha256sum").split()[0]
        pods = {word: self.release.pods(word.lower().rstrip("s")) for word in ("GATEWAYS", "OPERATORS")}
        names = {word: [pod["metadata"]["name"] for pod in found] for word, found in pods.items()}
        return {**names, "LEADER": [self.release.leader().partition("_")[0]], "WEIGHTS": [weights]}

    def run(self, command: str, check: bool = True) -> str:
        """What it prints. Raises CommandError where its exit status is not 0; a grep's that finds nothing is 1."""
        path = f"{VENV_BIN}{os.pathsep}{self.kube.environment['PATH']}"
        editor = f"sed -i 's/maxReplicas: {SCALING['maxReplicas']}/maxReplicas: {N}/'"
        environment = {**self.kube.environment, "PATH": path, "KUBE_EDITOR": editor}
        folder = self.folder if command.startswith("sha256sum") else ROOT
        return run("bash", "-c", f"cd '{folder}'\n{command}", env=environment, check=check, timeout=SECONDS).stdout

    def get(self, name: str) -> dict[str, Any]:
        return self.kube.get("reranker", name, "-n", self.namespace)

    def pods(self, label: str) -> list[dict[str, Any]]:
        return self.kube.items("pods", "-n", self.namespace, "-l", label)

    def begin_anew(self) -> None:
        """SPARE is as it was made, whatever was done to it; what brings it back is no canary."""

        def asked() -> tuple[Any, Any]:
            found = self.get(SPARE)
            return found["spec"], found["metadata"].get("annotations")

        if asked() == self.untouched:
            return
        for rollout in ({"strategy": "Replace"}, CANARY):
            text = json.dumps({**self.spare, "spec": {**self.spare["spec"], "rollout": rollout}})
            # The operator may write between kubectl's reading and writing.
            wait_for("no conflict", lambda text=text: self.kube.kubectl("replace", "-f", "-", input=text), timeout=10)
            wait_settled(self.kube, SPARE, self.namespace)
        self.untouched = asked()


def fill(text: str, words: Mapping[str, str]) -> str:
    """With a word for each placeholder. Two sums are wanted where there is SUM, one after the other."""
    for word in ("TOKENIZER", "FILE"):
        text = text.replace('"SUM"', f'"{words[word]}"', 1)
    return re.sub(r"\b[A-Z]+\b", lambda found: words.get(found[0], found[0]), text)


# --- what acts ---


def nothing(stage: Stage) -> None:
    """It needs no more than is there."""


def on_spare(*command: str) -> Callable[[Stage], object]:
    return lambda stage: stage.kube.kubectl(*command, "-n", stage.namespace)


def canary(stage: Stage) -> None:
    """A revision whose worker is ready and gets half of the requests."""
    patch = json.dumps({"spec": {"batching": {"lengthBucket": 32}}})
    stage.kube.kubectl("patch", "reranker", SPARE, "-n", stage.namespace, "--type=merge", "-p", patch)
    wait_for("a canary", lambda: rollout(stage)["phase"] == "Traffic", SECONDS)


def taken_back(stage: Stage) -> None:
    canary(stage)
    stage.run(f"kubectl rerank abort {SPARE} -n {stage.namespace}")
    wait_for("its end", lambda: rollout(stage)["phase"] == "RolledBack", SECONDS)


def rollout(stage: Stage) -> dict[str, Any]:
    """The last one of the spec that is asked for."""
    found = stage.get(SPARE)
    status = found["status"]
    last = status.get("rollout") or {}
    current = status["observedGeneration"] == found["metadata"]["generation"]
    return last if current and last.get("revision") == status["updatedRevision"] else {"phase": ""}


def ends_as(phase: str) -> Callable[[Stage], bool]:
    return lambda stage: rollout(stage)["phase"] == phase


def has(*path: str, value: Any) -> Callable[[Stage], bool]:
    """The spec has this value there, and the operator has taken it."""

    def found(stage: Stage) -> bool:
        spare = stage.get(SPARE)
        there: Any = spare["spec"]
        for key in path:
            there = there.get(key)
        degraded = condition(spare, "Degraded").get("status")
        return there == value and degraded == "False"

    return found


def is_true(kind: str) -> Callable[[Stage], bool]:
    return lambda stage: condition(stage.get(SPARE), kind).get("status") == "True"


def is_gone(annotation: str) -> Callable[[Stage], bool]:
    return lambda stage: annotation not in stage.get(SPARE)["metadata"].get("annotations", {})


def locked(stage: Stage) -> bool:
    sums = {"tokenizer.json": stage.sums["TOKENIZER"], "model.safetensors": stage.sums["FILE"]}
    return has("model", "sha256", value=sums)(stage)


def serves_by_itself(stage: Stage) -> bool:
    """The one that was asleep has a worker of its own."""
    return stage.get(ASLEEP)["status"].get("readyReplicas", 0) >= 1


def is_replaced(stage: Stage) -> bool:
    """The pod that was deleted is not there, and of its kind another is ready."""
    kinds = [stage.pods(f"rerank.dev/reranker={SPARE}"), stage.pods(f"rerank.dev/warm-pool={POOL}")]
    left = {pod["metadata"]["name"] for pods in kinds for pod in pods}
    return stage.deleted not in left and all(any(map(is_ready, pods)) for pods in kinds)


def gateways_ready(stage: Stage) -> bool:
    """As many as the chart has."""
    return [is_ready(pod) for pod in stage.release.pods("gateway")] == [True, True]


def one_gateway(stage: Stage) -> None:
    stage.kube.kubectl("scale", "deployment/rerank-operator-gateway", "--replicas=1", "-n", SYSTEM_NAMESPACE)
    wait_for("the other one to go", lambda: len(stage.release.pods("gateway")) == 1, SECONDS)


UPGRADE = "helm -n NS upgrade rerank-operator helm/rerank-operator --reset-then-reuse-values"


def upgraded(stage: Stage) -> None:
    stage.run(UPGRADE.replace("NS", SYSTEM_NAMESPACE))


def deployed(stage: Stage) -> bool:
    """And every gateway is there."""
    told = stage.kube.helm("status", "rerank-operator", "-n", SYSTEM_NAMESPACE, "-o", "json").stdout
    return json.loads(told)["info"]["status"] == "deployed" and gateways_ready(stage)


def led(stage: Stage) -> bool:
    return bool(stage.release.leader())


class Act(NamedTuple):
    before: Callable[[Stage], object]
    """What the command is for."""
    after: Callable[[Stage], bool]
    """Whether it has done what it is to do."""
    on: str = SPARE
    n: int = N


PATCH = "kubectl -n NS patch reranker NAME --type=merge -p "
PAUSED = "rerank.dev/scaling-paused"
ACTS = {
    PATCH + """'{"spec":{"scaling":{"minReplicas":1}}}'""": Act(nothing, serves_by_itself, on=ASLEEP),
    PATCH + """'{"spec":{"scaling":{"minReplicas":N}}}'""": Act(nothing, has("scaling", "minReplicas", value=N)),
    PATCH + """'{"spec":{"scaling":{"maxReplicas":N}}}'""": Act(nothing, has("scaling", "maxReplicas", value=N)),
    PATCH + """'{"spec":{"batching":{"maxBatchTokens":N}}}'""": Act(
        nothing, has("batching", "maxBatchTokens", value=TOKENS), n=TOKENS
    ),
    PATCH + """'{"spec":{"observability":{"capture":{"percent":1}}}}'""": Act(nothing, is_true("Capturing")),
    PATCH + """'{"spec":{"model":{"sha256":{"tokenizer.json":"SUM","model.safetensors":"SUM"}}}}'""": Act(
        nothing, locked
    ),
    "kubectl -n NS edit reranker NAME": Act(nothing, has("scaling", "maxReplicas", value=N)),
    """kubectl -n NS patch reranker NAME --type=json -p '[{"op":"remove","path":"/spec/replicas"}]'""": Act(
        on_spare("scale", "reranker", SPARE, "--replicas=2"), has("replicas", value=None)
    ),
    f"kubectl -n NS annotate reranker NAME {PAUSED}-": Act(
        on_spare("annotate", "reranker", SPARE, f"{PAUSED}=true"), is_gone(PAUSED)
    ),
    "kubectl -n NS annotate reranker NAME "
    "rerank.dev/maintenance-until=$(date -u -d '+1 hour' +%FT%TZ) --overwrite": Act(nothing, is_true("Maintenance")),
    "kubectl -n NS delete pod POD": Act(nothing, is_replaced),
    "kubectl rerank abort NAME -n NS": Act(canary, ends_as("RolledBack")),
    "kubectl rerank promote NAME -n NS --force": Act(canary, ends_as("Promoted")),
    "kubectl rerank retry NAME -n NS": Act(taken_back, ends_as("Traffic")),
    "kubectl rerank resume NAME -n NS": Act(
        on_spare("annotate", "reranker", SPARE, "rerank.dev/rollout-paused=true"), is_gone("rerank.dev/rollout-paused")
    ),
    "kubectl -n NS scale deployment/rerank-operator-gateway --replicas=2": Act(one_gateway, gateways_ready),
    "kubectl -n NS delete lease rerank-operator": Act(nothing, led),
    UPGRADE: Act(nothing, deployed),
    "helm -n NS rollback rerank-operator": Act(upgraded, deployed),
    "helm -n rerank-system rollback rerank-operator": Act(upgraded, deployed),
}


# --- the tests ---


def test_every_list_is_about_commands_that_are_written():
    every = [command for commands in WRITTEN.values() for command in commands]
    assert [one for one in [*LEFT_OUT, *ACTS] if one not in every] == []
    assert [page for page in LEFT_OUT_PAGES if page not in WRITTEN] == []
    assert [part for part in MAY_PRINT_NOTHING if not any(part in command for command in every)] == []
    assert [part for part in PRINTS if not any(re.search(part, command) for command in every)] == []


@pytest.mark.parametrize("page", [page for page in WRITTEN if page not in LEFT_OUT_PAGES])
def test_what_is_no_act_only_looks(page: str):
    looking = [command for command in WRITTEN[page] if command not in LEFT_OUT and command not in ACTS]
    assert [command for command in looking if not READING.match(command)] == []


def manifests(namespace: str, uri: str) -> dict[str, dict[str, Any]]:
    """Rerankers by name."""
    stand_in = {"podTemplate": paced.overlay(PROFILE, VENV_BIN)}
    good = reranker(
        GOOD, namespace, uri, replicas=1,
        rollout={"strategy": "Canary", "goldenSet": {"configMap": "golden"}},
        slo={"quality": {"minimum": 0.1}},
        observability={"capture": {"percent": 100}},
    )  # fmt: skip
    good["spec"]["model"]["maxLength"] = MAX_LENGTH
    spare = reranker(SPARE, namespace, uri, runtime=stand_in, scaling=SCALING, rollout=CANARY)
    asleep = {"minReplicas": 0, "maxReplicas": 1, "idleTimeout": "2s", "warmPool": POOL}
    return {GOOD: good, SPARE: spare, ASLEEP: reranker(ASLEEP, namespace, uri, runtime=stand_in, scaling=asleep)}


@pytest.fixture(scope="module")
def stage(kube: Cluster, release: Release, test_namespace: str, model_uri: str) -> Stage:
    """A Reranker that has served, was cut short, has ranked its golden set and lost a worker; one that was woken."""
    folder = STATE / "models" / "demo-reranker"
    pool = warm_pool(POOL, test_namespace, 1, podTemplate=paced.overlay(PROFILE, VENV_BIN))
    made = manifests(test_namespace, model_uri)
    kube.apply(golden_set(test_namespace), pool, *made.values())
    stage = Stage(kube, release, test_namespace, folder, made[SPARE])
    wait_for("a warm pod", lambda: any(map(is_ready, stage.pods(f"rerank.dev/warm-pool={POOL}"))), SECONDS)
    with release.reach_gateways() as urls:

        def ask(url: str, name: str) -> None:
            body = {"query": QUERY, "documents": ["ls lists files " * MAX_LENGTH, "rm removes files"]}
            httpx.post(f"{url}/{test_namespace}/{name}/v2/rerank", json=body, timeout=SECONDS).raise_for_status()

        def asleep() -> bool:
            status = stage.get(ASLEEP)["status"]
            return not status.get("replicas") and not status["scaling"].get("loaners")

        ask(urls[0], ASLEEP)
        for url in urls:
            ask(url, GOOD)
        wait_for("a Reranker that sleeps", asleep, SECONDS)
        ask(urls[0], ASLEEP)
    wait_for("a ranking", lambda: condition(stage.get(GOOD), "RankingQuality").get("status") == "True", SECONDS)
    (pod,) = stage.pods(f"rerank.dev/reranker={GOOD}")
    (worker,) = kube.processes(namespace=test_namespace, pod=pod["metadata"]["name"])
    os.kill(worker["pid"], signal.SIGKILL)

    def restarted() -> bool:
        (pod,) = stage.pods(f"rerank.dev/reranker={GOOD}")
        return is_ready(pod) and pod["status"]["containerStatuses"][0]["restartCount"] == 1

    wait_for("the worker's second life", restarted, SECONDS)
    wait_settled(kube, SPARE, test_namespace)
    return stage


@pytest.mark.parametrize("page", [page for page in WRITTEN if page not in LEFT_OUT_PAGES])
def test_what_looks_prints_what_it_is_to_show(stage: Stage, page: str):
    words = stage.words(page)
    seen = stage.seen()
    for command in WRITTEN[page]:
        filled = fill(command, words)
        if command in LEFT_OUT or command in ACTS or filled in stage.done:
            continue
        may_be_empty = any(part in command for part in MAY_PRINT_NOTHING)
        told = stage.run(filled, check=not may_be_empty)
        assert told.strip() or may_be_empty, f"{filled}\nprints nothing"
        expected = [fill(text, words) for part, texts in PRINTS.items() if re.search(part, command) for text in texts]
        missing = [one for text in expected for one in seen.get(text, [text]) if one not in told]
        assert missing == [], f"{filled}\n{told}"
        stage.done.add(filled)


@pytest.mark.parametrize("page", [page for page, commands in WRITTEN.items() if set(commands) & set(ACTS)])
def test_what_acts_does_what_it_says(stage: Stage, page: str):
    for command in WRITTEN[page]:
        if command not in ACTS:
            continue
        act = ACTS[command]
        if fill(command, stage.words(page, act.on)) in stage.done:
            continue
        stage.begin_anew()
        act.before(stage)
        words = stage.words(page, act.on)
        stage.deleted = words["POD"]
        began = time.monotonic()
        told = stage.run(fill(command, {**words, "N": str(act.n)}))
        wait_for(f"what is to come of {command}\n{told}", lambda act=act: act.after(stage), SECONDS)
        print(json.dumps({"command": command, "seconds": round(time.monotonic() - began, 1)}))
        stage.done.add(fill(command, words))
