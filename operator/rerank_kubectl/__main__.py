"""The command `kubectl-rerank`, which kubectl runs as `kubectl rerank`: see ``--help``."""

import argparse
import shutil
import signal
import sys
import time
from datetime import UTC, datetime

from rerank_api.reranker import Reranker

from rerank_kubectl import changes, history
from rerank_kubectl.changes import Change, Refused
from rerank_kubectl.commands import Call
from rerank_kubectl.kubectl import Failed, Kubectl
from rerank_kubectl.options import parse
from rerank_kubectl.rendering import json_text, printable, reranker_table, status_json, status_page
from rerank_kubectl.watching import Lines, watch

EXIT_NOT_DONE = 2
CLEAR = "\x1b[H\x1b[2J"
"""Of a terminal: from the top again."""


def main() -> None:
    # A reader that has had enough and a person who presses Ctrl-C end it as they end other commands: without a word.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a script's background job has it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """The exit status; ``arguments`` default to the process's own."""
    options = parse(arguments)
    call = Call(options.context, options.kubeconfig)
    kubectl = Kubectl(call.flags(), options.namespace)
    try:
        if options.verb == "status":
            return _status(options, kubectl, call)
        if options.verb == "history":
            return _history(options, kubectl, call)
        if options.verb in ("calibrate", "tune", "samples"):
            # Here, for an HTTP client takes longer to import than the other verbs take to end.
            from rerank_kubectl import jobs

            return jobs.run(options, kubectl, call, _width())
        return _change(options, kubectl, call)
    except (Failed, Refused) as error:
        print(printable(f"kubectl rerank: {error}"), file=sys.stderr)
        return EXIT_NOT_DONE


def _status(options: argparse.Namespace, kubectl: Kubectl, call: Call) -> int:
    if options.name is None:
        return _list(options, kubectl, call)
    if options.watch:
        return _watch(options, kubectl, call)
    _show(kubectl.reranker(options.name), options.json, call)
    return 0


def _list(options: argparse.Namespace, kubectl: Kubectl, call: Call) -> int:
    found = kubectl.rerankers(all_namespaces=options.all_namespaces)
    if options.json:
        print(json_text({"rerankers": [status_json(one, call) for one in found]}))
    elif found:
        print(printable(reranker_table(found, namespaces=options.all_namespaces)), end="")
    else:
        where = "in any namespace" if options.all_namespaces else "in this namespace: -n names one, -A asks all"
        print(f"no Rerankers {where}", file=sys.stderr)
    return 0


def _watch(options: argparse.Namespace, kubectl: Kubectl, call: Call) -> int:
    lines, redrawn = Lines(), sys.stdout.isatty()

    def show(reranker: Reranker) -> None:
        if options.json:
            return
        if redrawn:
            print(CLEAR + printable(status_page(reranker, _now(), call, _width())), end="", flush=True)
        elif (line := lines.of(reranker, time.monotonic())) is not None:
            print(printable(f"{_now():%Y-%m-%dT%H:%M:%SZ} {line}"), flush=True)

    watched = watch(lambda: kubectl.reranker(options.name), show, time.monotonic, time.sleep, options.timeout)
    if options.json or not redrawn:
        _show(watched.last, options.json, call)
    return watched.code


def _show(reranker: Reranker, as_json: bool, call: Call) -> None:
    if as_json:
        print(json_text(status_json(reranker, call)))
    else:
        print(printable(status_page(reranker, _now(), call, _width())), end="")


def _history(options: argparse.Namespace, kubectl: Kubectl, call: Call) -> int:
    reranker = kubectl.reranker(options.name)
    kept = history.read_history(kubectl.revisions(reranker.metadata))
    if options.revision is not None:
        kept = history.only(kept, options.revision)
    if options.json:
        print(json_text(history.history_json(kept, reranker)))
    elif options.revision is not None:
        print(printable(history.revision_page(kept[0], reranker, _now(), _width())), end="")
    else:
        print(printable(history.history_table(kept, reranker, _width())), end="")
    return 0


def _change(options: argparse.Namespace, kubectl: Kubectl, call: Call) -> int:
    reranker = kubectl.reranker(options.name)
    change = _decide(options, reranker, call)
    if change.annotations:
        kubectl.annotate(reranker.metadata, change.annotations)
    print(printable(change.said))
    if change.but:
        print(printable(f"kubectl rerank: {change.but}"), file=sys.stderr)
        return EXIT_NOT_DONE
    return 0


def _decide(options: argparse.Namespace, reranker: Reranker, call: Call) -> Change:
    match options.verb:
        case "promote":
            return changes.promote(reranker, options.revision, options.force, call)
        case "abort":
            return changes.abort(reranker, options.revision, call)
        case "pause":
            return changes.pause(reranker, call)
        case "resume":
            return changes.resume(reranker, call)
        case _:
            return changes.retry(reranker, _now(), call)


def _now() -> datetime:
    return datetime.now(UTC)


def _width() -> int:
    """Of the text: as wide as the terminal, within what can be read; 80 where there is none."""
    return min(max(shutil.get_terminal_size((80, 24)).columns, 60), 120)


if __name__ == "__main__":
    main()
