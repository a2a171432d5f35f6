"""What the command can be told, and its help."""

import argparse
import math
from pathlib import Path
from typing import Any

from rerank_api import units

_EXAMPLES = """\
examples:
  kubectl rerank status                       all Rerankers of the namespace
  kubectl rerank status products -n search    one rollout, and what can be done
  kubectl rerank status products --watch      until it ends
  kubectl rerank abort products               back to what served before
  kubectl rerank history products             how earlier ones ended, and why
  kubectl rerank calibrate products           are its scores probabilities?
  kubectl rerank tune products                which batch size is fastest there
  kubectl rerank samples products --since 1h  requests that were captured

exit status:
  0  done; with --watch: the revision that the spec asks for serves
  1  with --watch: it was rolled back, or the spec has moved on
  2  not done: bad input, refused, or kubectl failed; stderr says why
  3  with --watch: still going on, or paused, when --timeout was over

Everything is asked and written by your own kubectl, with your rights: status
and history need get and list of rerankers (history: of controllerrevisions,
too), those from promote to retry patch of rerankers; calibrate, tune and
samples tell theirs in their --help."""

_PROMOTE = """\
Sends all requests to the canary and skips the gates that are left.

Refused while it has not shown that it is no worse: while any check says fail
or hold, or no user's request has been judged. The reasons are listed, and
--force goes on in spite of them. With strategy Canary, one that fails a check
is rolled back all the same. The annotation names the revision that was looked
at, so that a canary that came since is never promoted by mistake; --revision
names it yourself."""

_ABORT = """\
Takes the canary back: its share of the requests goes to zero, stable serves
on.

It does not ask twice, for stable keeps all its workers until the promotion.
The revision is not tried again until the spec changes or somebody says retry."""

_PAUSE = """\
Keeps the canary where it is (annotation rerank.dev/rollout-paused). It is
still rolled back where it is worse. Without a canary, the next one waits."""

_RESUME = """\
Removes what pause has set. Refused where something else holds the canary:
spec.rollout.paused, or its deadline; it says which."""

_RETRY = """\
Tries the rejected revision again, from the first gate on, and forgets promote
and abort. Refused where nothing is rejected."""

_CALIBRATE = """\
Fits the temperature under which scores are probabilities of being relevant.

A serving worker scores labelled queries beside what users send, with low
priority. Told are log loss, Brier score and ECE with the temperature in force
and with the fitted one, the latter on queries that it was not fitted to, and
how often documents of each score were relevant. It prints the patch;
--apply makes it: a new revision, rolled out as any other. A document with a
label above 0 is relevant. The share of relevant documents should be as among
users' candidates, for that is what scores are calibrated to.

Needs get of rerankers and configmaps, list of pods, create (and get) of
pods/portforward; --apply: patch of rerankers. The ClusterRole edit has them."""

_TUNE = """\
Measures batch sizes and token budgets on the hardware that the workers have.

A Job with the worker's own pod template (model, resources, nodes,
tolerations) runs rerank-worker tune and is removed afterwards. It disturbs no
serving worker, and needs the room of one more: where there is none, no free
GPU for example, it waits, tells why, and gives up after --wait. --yes is
needed while requests wait or a rollout goes on, as those may need that room.

Needs get of rerankers and deployments, create and delete of jobs, list of
pods, get of pods/log. The ClusterRole edit has them."""

_SAMPLES = """\
Shows requests that gateways have captured (spec.observability.capture), out
of the gateways' logs, redacted and cut there: queries, documents, scores.

Needs list of pods and get of pods/log where the gateways run: in all
namespaces, or in the one that --gateway-namespace names."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Ends with status 2 and a sentence where they are none."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.verb == "status":
        if options.all_namespaces and (options.name or options.namespace):
            parser.error("-A lists all namespaces: leave out NAME and -n, or leave out -A")
        if options.watch and not options.name:
            parser.error("--watch needs the NAME of the Reranker whose rollout is to be watched")
    if options.verb == "calibrate" and options.force and not options.apply:
        parser.error("--force belongs to --apply: without it nothing is set")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kubectl rerank",
        description="Rerankers: how far rollouts are, why, and what to do by hand.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _of_kubectl(parser)
    parser.set_defaults(namespace=None, context=None, kubeconfig=None)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    status = _verb(verbs, "status", "how far rollouts are, and what can be done", "One Reranker in full, or a table.")
    status.add_argument("name", nargs="?", metavar="NAME", help="of the Reranker; default: a table of all")
    status.add_argument("-A", "--all-namespaces", action="store_true", help="the table of all namespaces")
    status.add_argument("--json", action="store_true", help="one JSON object, with --watch at the end")
    status.add_argument("--watch", "-w", action="store_true", help="look every 2 s until the rollout ends")
    status.add_argument("--timeout", type=_duration, default="24h", help="of --watch, such as 30m; default: 24h")

    promote = _verb(verbs, "promote", "send all requests to the canary", _PROMOTE)
    _named(promote)
    promote.add_argument("--revision", metavar="HASH", help="promote only if this is the canary")
    promote.add_argument("--force", action="store_true", help="though it has not shown that it is no worse")

    abort = _verb(verbs, "abort", "take the canary back", _ABORT)
    _named(abort)
    abort.add_argument("--revision", metavar="HASH", help="abort only if this is the canary")

    _named(_verb(verbs, "pause", "keep the canary where it is", _PAUSE))
    _named(_verb(verbs, "resume", "let it go on", _RESUME))
    _named(_verb(verbs, "retry", "try the rejected revision again", _RETRY))

    history = _verb(verbs, "history", "the revisions that are kept, and how their rollouts ended", "Newest first.")
    _named(history)
    history.add_argument("--revision", metavar="HASH", help="that one in full: each check, and its spec")
    history.add_argument("--json", action="store_true", help="one JSON object")

    calibrate = _verb(verbs, "calibrate", "fit the temperature to labels, with a reliability diagram", _CALIBRATE)
    _named(calibrate)
    calibrate.add_argument(
        "--labels", type=Path, metavar="FILE", help="queries with labels; default: spec.rollout.goldenSet"
    )
    calibrate.add_argument("--apply", action="store_true", help="set spec.model.temperature to the fitted one")
    calibrate.add_argument("--force", action="store_true", help="with --apply: in spite of doubts")
    calibrate.add_argument("--json", action="store_true", help="one JSON object")

    tune = _verb(verbs, "tune", "measure batch sizes and token budgets on the workers' hardware", _TUNE)
    _named(tune)
    tune.add_argument("--seconds", type=_seconds, default=120.0, help="from its start, loading included; default: 120")
    tune.add_argument("--wait", type=_duration, default="10m", help="for room and the image; default: 10m")
    tune.add_argument("--yes", action="store_true", help="though requests wait or a rollout goes on")
    tune.add_argument("--json", action="store_true", help="the worker's own report")

    samples = _verb(verbs, "samples", "requests that the gateways have captured", _SAMPLES)
    _named(samples)
    samples.add_argument("--since", type=_duration, default="1h", help="how far back; default: 1h")
    samples.add_argument(
        "--disagreements", action="store_true", help="only mirrored ones that a canary ranked otherwise"
    )
    samples.add_argument("--gateway-namespace", metavar="NAME", help="of the gateways; default: looked for in all")
    samples.add_argument("--json", action="store_true", help="one JSON object a line, as the gateway wrote it")
    return parser


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, short: str, long: str
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(
        name, help=short, description=long, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    _of_kubectl(verb)
    return verb


def _of_kubectl(parser: argparse.ArgumentParser) -> None:
    """Before the command or behind it. Without defaults, for those of the second would hide what the first was told."""
    asked = parser.add_argument_group("of kubectl")
    nothing: dict[str, Any] = {"default": argparse.SUPPRESS}
    asked.add_argument("-n", "--namespace", metavar="NAME", help="default: the context's", **nothing)
    asked.add_argument("--context", metavar="NAME", help="of the kubeconfig; default: the current one", **nothing)
    asked.add_argument("--kubeconfig", metavar="FILE", help="default: as kubectl finds it", **nothing)


def _named(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", metavar="NAME", help="of the Reranker")


def _seconds(text: str) -> float:
    """10 to 3600."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 10 <= found <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds from 10 to 3600")
    return found


def _duration(text: str) -> float:
    try:
        return units.parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
