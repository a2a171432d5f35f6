"""calibrate, tune and samples: what asks workers and gateways, and not the API server alone. Thin: decisions are made
in ``calibrate``, ``tune`` and ``samples``.

What it starts it ends: a port-forward and a Job are gone when it is, also after Ctrl-C and SIGTERM, and where the
terminal or the reader of what it prints is gone.
"""

import argparse
import secrets
import signal
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Self

from rerank_api import names
from rerank_api.reranker import Reranker
from rerank_api.revision import object_name
from rerank_operator.rollout.golden.golden_set import BadGoldenSet, LabelledQuery, parse_labels, read_labels

from rerank_kubectl import calibrate, samples, tune, workers
from rerank_kubectl.changes import Refused
from rerank_kubectl.commands import Call
from rerank_kubectl.kubectl import Failed, Kubectl
from rerank_kubectl.rendering import json_line, json_text, one_line, printable
from rerank_kubectl.workers import Worker

_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_UNREAD = [getattr(signal, name) for name in ("SIGPIPE",) if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """A person or the system has had enough; ``code``: the exit status that says so."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


@contextmanager
def stoppable() -> Generator[None]:
    """The first signal that ends a command raises Stopped, so that what it has started is ended first; that is not
    disturbed by further ones. What is ignored already (nohup, a script's background job) stays so. Writing to a reader
    that is gone raises BrokenPipeError, for the signal would end the command at once."""

    def stop(number: int, _: Any) -> NoReturn:
        undisturbed()
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in (*_ENDING, *_UNREAD)}
    try:
        for number in _UNREAD:
            signal.signal(number, signal.SIG_IGN)
        for number in _ENDING:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def undisturbed() -> None:
    """From now on signals that end a command are not heard, until ``stoppable`` ends: what is begun is seen through."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)


def run(options: argparse.Namespace, kubectl: Kubectl, call: Call, width: int) -> int:
    """The exit status. Raises Failed and Refused."""
    verb = {"calibrate": _calibrate, "tune": _tune, "samples": _samples}[options.verb]
    try:
        with stoppable():
            return verb(options, kubectl, call, width)
    except Stopped as stopped:
        return stopped.code
    except BrokenPipeError:
        return 128 + signal.SIGPIPE


def _calibrate(options: argparse.Namespace, kubectl: Kubectl, call: Call, width: int) -> int:
    reranker = kubectl.reranker(options.name)
    queries, source = _labels(options, kubectl, reranker)
    if (why := calibrate.one_kind(queries)) is not None:
        raise Refused(f"{source}: {why}")
    worker, revision = _worker(kubectl, reranker)
    documents = sum(len(query.documents) for query in queries)
    done = 0
    with Progress() as progress:

        def told() -> None:
            nonlocal done
            done += 1
            progress.show(f"{worker.pod}: {done} of {len(queries)} queries scored")

        progress.show(f"{worker.pod}: {documents} documents of {len(queries)} queries are to be scored")
        scored = workers.score(kubectl, worker, queries, told)
    labelled = calibrate.labelled(queries, scored.logits)
    found = calibrate.report(reranker, revision, source, worker.pod, scored.activation, scored.temperature, labelled)
    if options.json:
        print(json_text(calibrate.as_json(found, call)))
    else:
        print(printable(calibrate.page(found, call, width)), end="")
    return _apply(options, kubectl, reranker, found) if options.apply else 0


def _apply(options: argparse.Namespace, kubectl: Kubectl, reranker: Reranker, found: calibrate.Report) -> int:
    if calibrate.same(found):
        return 0
    if found.doubts and not options.force:
        listed = "".join(f"\n  - {doubt}" for doubt in found.doubts)
        raise Refused(f"the temperature is not set:{listed}\nTo set it in spite of that: --force")
    # Scoring takes minutes.
    if kubectl.reranker(options.name).metadata.generation != reranker.metadata.generation:
        raise Refused("the temperature is not set: the spec has changed since the labels were scored; calibrate again")
    kubectl.patch(reranker.metadata, calibrate.patch(found))
    print(f"spec.model.temperature is {found.fitted:g} now: a new revision", file=sys.stderr)
    return 0


def _labels(options: argparse.Namespace, kubectl: Kubectl, reranker: Reranker) -> tuple[Sequence[LabelledQuery], str]:
    """The queries, and where they are from. Raises Refused."""
    golden = reranker.spec.rollout.golden_set
    try:
        if options.labels is not None:
            return read_labels(options.labels).queries, str(options.labels)
        if golden is None:
            raise Refused(
                f"{options.name} has no golden set (spec.rollout.goldenSet): give labels with --labels FILE, one "
                '{"query": ..., "documents": [...], "labels": [...]} a line'
            )
        data = kubectl.config_map(reranker.metadata.namespace, golden.config_map).get("data") or {}
        key = golden.key if golden.key is not None else next(iter(data), None) if len(data) == 1 else None
        if key is None or key not in data:
            there = ", ".join(data) or "none"
            raise Refused(
                f"ConfigMap {golden.config_map} has no key {golden.key or '(goldenSet.key)'}: there is {there}"
            )
        source = f"ConfigMap {golden.config_map}, {key}"
        return parse_labels(data[key], source).queries, source
    except BadGoldenSet as error:
        raise Refused(str(error)) from None


def _worker(kubectl: Kubectl, reranker: Reranker) -> tuple[Worker, str]:
    """One that serves, and its revision. Raises Refused where there is none."""
    metadata, revision = reranker.metadata, reranker.status.current_revision
    if revision is None:
        raise Refused(f"{metadata.namespace}/{metadata.name} serves no revision yet")
    pods = [
        pod
        for selector in workers.selectors(metadata.name, revision)
        for pod in kubectl.pods(metadata.namespace, selector)
    ]
    found = workers.serving(pods, metadata.name, revision)
    if not found:
        raise Refused(
            f"no worker of revision {revision} of {metadata.namespace}/{metadata.name} is ready: wake it with a "
            f"request, or keep one with: kubectl scale rerankers.{names.GROUP}/{metadata.name} "
            f"-n {metadata.namespace} --replicas=1"
        )
    return found[0], revision


def _tune(options: argparse.Namespace, kubectl: Kubectl, call: Call, width: int) -> int:
    reranker = kubectl.reranker(options.name)
    metadata, revision = reranker.metadata, reranker.status.current_revision
    if revision is None:
        raise Refused(f"{metadata.namespace}/{metadata.name} serves no revision yet")
    hindrances = tune.hindrances(reranker)
    if hindrances and not options.yes:
        raise Refused(
            f"the room of one more worker may be needed: {'; '.join(hindrances)}. To measure all the same: --yes"
        )
    deployment = kubectl.deployment(metadata.namespace, object_name(metadata.name, revision))
    name = tune.job_name(metadata.name, secrets.token_hex(4))
    job = tune.job(name, deployment, reranker, options.seconds, options.wait, options.json)
    container = f"--container={names.WORKER_CONTAINER}"
    made = True  # as long as nobody says that it was not: no answer is none
    with Progress() as progress:
        try:
            try:
                kubectl.create_job(job)
            except Failed as failed:
                made = failed.passing
                raise
            found = tune.follow(
                look=lambda: tune.stage(kubectl.pods(metadata.namespace, f"batch.kubernetes.io/job-name={name}")),
                progress=lambda pod: "".join(kubectl.log_lines(metadata.namespace, pod, container, "--tail=1")[-1:]),
                show=lambda text: progress.show(f"{name}: {text}"),
                clock=time.monotonic,
                wait=time.sleep,
                patience=options.wait,
                seconds=options.seconds + tune.LOAD_SECONDS,
            )
            log = kubectl.log_lines(metadata.namespace, found.pod, container) if found.pod else []
        finally:
            # Before anything is printed, for the terminal may be gone.
            try:  # a signal may come before it is not heard any more
                undisturbed()
            finally:
                if made:
                    kubectl.delete_job(metadata.namespace, name)
    report = tune.report_of(log, options.json)
    if found.state == "failed" or report is None:
        raise Refused(tune.failure(found, log))
    print(report, end="")
    return 0


def _samples(options: argparse.Namespace, kubectl: Kubectl, call: Call, width: int) -> int:
    reranker = kubectl.reranker(options.name)
    try:
        pods = kubectl.pods(options.gateway_namespace, samples.GATEWAYS)
    except Failed as failed:
        if options.gateway_namespace is not None or failed.passing:
            raise
        raise Refused(f"{failed}; where the gateways run is told by --gateway-namespace NAME") from None
    if not pods:
        raise Refused(
            f"no gateway was found by its labels, {samples.GATEWAYS}: --gateway-namespace names another place"
        )
    places = sorted({pod["metadata"]["namespace"] for pod in pods})
    if len(places) > 1 and options.gateway_namespace is None:
        raise Refused(
            f"gateways were found in {len(places)} namespaces, {', '.join(places)}, and anybody may give a pod their "
            "labels: name the one that is meant with --gateway-namespace NAME"
        )
    logs: dict[str, list[str]] = {}
    unread: list[str] = []
    for pod in pods:
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        try:
            logs[f"{namespace}/{name}"] = kubectl.log_lines(
                namespace,
                name,
                "--container=gateway",
                f"--since={max(1, round(options.since))}s",
                holding=f'"{samples.LOGGER}"'.encode(),
            )
        except Failed as failed:
            unread.append(f"{namespace}/{name}: {failed}")
    found = samples.read(logs, reranker, options.disagreements)
    if options.json:
        for line in found:
            print(json_line(line.text))
    elif found:
        print(samples.page(found, width), end="")
    for text in unread:
        print(one_line(f"kubectl rerank: the log of gateway {text}"), file=sys.stderr)
    if not found:
        print(samples.none_found(reranker, len(pods), options.since, options.disagreements, call), file=sys.stderr)
    return 2 if unread else 0


class Progress:
    """One line on stderr: rewritten in a terminal; elsewhere one now and then, and where it is new. What follows the
    context begins on a line of its own."""

    EVERY = 10.0
    """Seconds between lines that are no terminal's."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last, self._told, self._shown = "", float("-inf"), False

    def show(self, text: str) -> None:
        text = one_line(text)
        if text == self._last or not (self._terminal or time.monotonic() - self._told >= self.EVERY):
            return
        self._last, self._told, self._shown = text, time.monotonic(), True
        print(f"\r{text}\033[K" if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr)
        sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal and self._shown:
            print(file=sys.stderr)
