"""``make demo``: a cluster, the chart, a Reranker from docs/examples, and a real query over 50 real passages.

Uses a local cluster of its own unless ``--context`` names another; never the user's current context by itself.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

import cohere
import yaml
from cohere.core.api_error import ApiError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.cluster import BIN, ROOT, STATE, VENV_BIN, Cluster, CommandError, devcluster, local_cluster, wait_for
from harness.release import RELEASE, SYSTEM_NAMESPACE, Release, condition, is_ready, is_settled, namespace

EXAMPLES = ROOT / "docs" / "examples"
QUERY = ROOT / "tests" / "models" / "demo_query.json"
SHOWN = 10


def main() -> int:
    options = parse_arguments()
    try:
        if options.command == "down":
            take_down(options)
        else:
            bring_up(options)
    except CommandError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("command", choices=["up", "down"])
    parser.add_argument("--name", default="demo", help="the local cluster's name (default: %(default)s)")
    parser.add_argument("--context", help="install on this context of your kubeconfig instead of a local cluster")
    parser.add_argument(
        "--kubeconfig",
        type=Path,
        default=Path(os.environ.get("KUBECONFIG", "~/.kube/config")).expanduser(),
        help="where --context is looked up (default: $KUBECONFIG or ~/.kube/config)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a value for Helm (repeatable)")
    parser.add_argument(
        "--example", type=Path, help="the Reranker to apply (default: demo.yaml; minimal.yaml with --context)"
    )
    parser.add_argument("--timeout", type=float, default=180, help="seconds to wait for Ready (default: %(default)s)")
    return parser.parse_args()


class Steps:
    """Numbered lines with the time that each step took."""

    def __init__(self) -> None:
        self._begin = self._last = time.monotonic()
        self._number = 0

    def done(self, text: str) -> None:
        now = time.monotonic()
        self._number += 1
        print(f"  {self._number}. {text}  ({now - self._last:.1f} s)", flush=True)
        self._last = now

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin


def bring_up(options: argparse.Namespace) -> None:
    steps = Steps()
    example = options.example or EXAMPLES / ("minimal.yaml" if options.context else "demo.yaml")
    reranker = next(m for m in yaml.safe_load_all(example.read_text()) if m["kind"] == "Reranker")
    name, home = reranker["metadata"]["name"], reranker["metadata"].get("namespace", "default")

    if options.context:
        cluster = Cluster(kubeconfig=options.kubeconfig, context=options.context)
        steps.done(f"using the cluster of context {options.context}")
    else:
        cluster = local_cluster(options.name)
        steps.done(f"a local Kubernetes is up ({memory_of(cluster)})")

    release = Release(cluster)
    release.install(*options.set)
    steps.done(f"the chart is installed in namespace {SYSTEM_NAMESPACE}: operator and gateway are available")

    cluster.apply(namespace(home))
    if cluster.local:
        provide_model(cluster, home)
    cluster.kubectl("apply", "-f", example)
    steps.done(f"applied {example.relative_to(ROOT) if example.is_relative_to(ROOT) else example}")

    wait_until_ready(cluster, name, home, options.timeout)
    steps.done(f"Reranker {home}/{name} is Ready")

    with release.reach_gateways() as urls:
        show_ranking(urls[0], f"{home}/{name}")
    steps.done("a real query was reranked")
    print(f"\nAll of it in {steps.seconds:.1f} s.\n")
    print(what_next(cluster, options, urls[0], name, home))


def memory_of(cluster: Cluster) -> str:
    status = json.loads(cluster.devcluster("status", "-o", "json").stdout)
    return f"{status['total']['pssBytes'] / 2**20:.0f} MiB of memory"


def provide_model(cluster: Cluster, home: str) -> None:
    """A volume with the demo models, and the claim ``demo-models`` on it that docs/examples/demo.yaml names."""
    volume = f"demo-models-{home}"
    size = {"storage": "1Gi"}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {
                "capacity": size,
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": "",
                "hostPath": {"path": str(STATE / "models")},
                "claimRef": {"name": "demo-models", "namespace": home},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "demo-models", "namespace": home},
            "spec": {
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": "",
                "volumeName": volume,
                "resources": {"requests": size},
            },
        },
    )


def wait_until_ready(cluster: Cluster, name: str, home: str, timeout: float) -> None:
    """Wait, and say each new thing that the conditions say. Raises CommandError at the deadline."""
    said = ""

    def settled() -> bool:
        nonlocal said
        reranker = cluster.get("reranker", name, "-n", home)
        ready = condition(reranker, "Ready")
        message = f"{ready.get('reason', 'Waiting')}: {ready.get('message', 'the operator has not seen it yet')}"
        if not is_settled(reranker) and message != said:
            print(f"     ... {message}", flush=True)
            said = message
        return is_settled(reranker)

    try:
        wait_for(f"{home}/{name} to be Ready", settled, timeout)
    except CommandError as error:
        raise CommandError(f"{error}. {said}") from None


def show_ranking(url: str, model: str) -> None:
    """Rerank the repo's demo query with the real Cohere SDK and print the best passages."""
    demo = json.loads(QUERY.read_text())
    client = cohere.ClientV2(api_key=os.environ.get("RERANK_API_KEY", "unused"), base_url=url)
    documents: list[str] = demo["documents"]
    times = []
    for _ in range(3):
        start = time.monotonic()
        try:
            answer = client.rerank(model=model, query=demo["query"], documents=documents)
        except ApiError as error:
            raise CommandError(f"the gateway answered {error.status_code}: {error.body}") from None
        times.append(time.monotonic() - start)
    relevant = set(demo["relevant"])
    width = max(40, shutil.get_terminal_size((100, 24)).columns - 24)
    print(f"\n  query: {demo['query']}\n")
    print("  rank  score   passage (* = labelled relevant)")
    for rank, result in enumerate(answer.results[:SHOWN], 1):
        text = " ".join(documents[result.index].split())
        mark = "*" if result.index in relevant else " "
        print(f"  {rank:>4}  {result.relevance_score:.4f} {mark} {text[:width]}")
    shown = ", ".join(f"{1000 * t:.0f} ms" for t in times)
    print(f"  ... and {len(documents) - SHOWN} more. {len(documents)} passages a request, three in a row: {shown}\n")


def what_next(cluster: Cluster, options: argparse.Namespace, url: str, name: str, home: str) -> str:
    if not cluster.local:
        kubectl = f"kubectl --context {options.context}"
        return (
            f"What next:\n  {kubectl} -n {home} describe reranker {name}\n"
            f"  export PATH={VENV_BIN}:$PATH   # has kubectl's plugin\n"
            f"  kubectl rerank status {name} -n {home} --context {options.context}\n"
            f"  {kubectl} -n {SYSTEM_NAMESPACE} port-forward service/{RELEASE}-page 8081:80   # http://localhost:8081\n"
        )
    curl = (
        f"curl -s {url}/v2/rerank -d "
        f"""'{{"model":"{home}/{name}","query":"list files","documents":["ls lists files","rm removes them"]}}'"""
    )
    patch = {"spec": {"batching": {"maxDelay": "2ms"}}}
    return "\n".join(
        [
            "What next:",
            f"  export KUBECONFIG={cluster.kubeconfig} PATH={BIN}:{VENV_BIN}:$PATH",
            f"  kubectl -n {home} get rerankers -o wide",
            f"  kubectl -n {home} describe reranker {name}",
            f"  kubectl events --for reranker/{name} -n {home}   # oldest first; describe lists them in any order",
            "  kubectl explain reranker.spec.model",
            f"  {curl}",
            f"  kubectl -n {home} scale reranker {name} --replicas=2",
            f"  kubectl -n {home} patch reranker {name} --type=merge -p '{json.dumps(patch)}'   # a new revision",
            f"  kubectl rerank status {name} -n {home}   # promote, abort, pause, retry: kubectl rerank --help",
            f"  {page_address(cluster)}   # the operator's page: the fleet and each Reranker, live",
            "  make down                          # remove it all",
        ]
    )


def page_address(cluster: Cluster) -> str:
    """Where the page of an operator's pod is reached from this machine."""
    return next(f"http://{pod['status']['podIP']}:8081/" for pod in Release(cluster).pods("operator") if is_ready(pod))


def take_down(options: argparse.Namespace) -> None:
    if not options.context:
        devcluster("down", "--name", options.name)
        print(f"the local cluster {options.name} and everything in it are gone")
        return
    cluster = Cluster(kubeconfig=options.kubeconfig, context=options.context)
    example = options.example or EXAMPLES / "minimal.yaml"
    cluster.kubectl("delete", "-f", example, "--ignore-not-found", "--wait=true", timeout=120)
    Release(cluster).uninstall()
    print(f"the example and the chart are gone from context {options.context}; its namespaces were kept")


if __name__ == "__main__":
    sys.exit(main())
