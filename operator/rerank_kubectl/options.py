"""What the command can be told, and its help."""

import argparse

from rerank_api import units

_EXAMPLES = """\
examples:
  kubectl rerank status                       all Rerankers of the namespace
  kubectl rerank status products -n search    one rollout, and what can be done
  kubectl rerank status products --watch      until it ends
  kubectl rerank abort products               back to what served before
  kubectl rerank history products             how earlier ones ended, and why

exit status:
  0  done; with --watch: the revision that the spec asks for serves
  1  with --watch: it was rolled back, or the spec has moved on
  2  not done: bad input, refused, or kubectl failed; stderr says why
  3  with --watch: still going on, or paused, when --timeout was over

Everything is asked and written by your own kubectl, with your rights: status
and history need get and list of rerankers (history: of controllerrevisions,
too), the others patch of rerankers. Flags stand behind the command: kubectl
rerank status -n search."""

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


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Ends with status 2 and a sentence where they are none."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.verb == "status":
        if options.all_namespaces and (options.name or options.namespace):
            parser.error("-A lists all namespaces: leave out NAME and -n, or leave out -A")
        if options.watch and not options.name:
            parser.error("--watch needs the NAME of the Reranker whose rollout is to be watched")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kubectl rerank",
        description="Rollouts of Rerankers: how far they are, why, and what to do by hand.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    return parser


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, short: str, long: str
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(
        name, help=short, description=long, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    asked = verb.add_argument_group("of kubectl")
    asked.add_argument("-n", "--namespace", metavar="NAME", help="default: the context's")
    asked.add_argument("--context", metavar="NAME", help="of the kubeconfig; default: the current one")
    asked.add_argument("--kubeconfig", metavar="FILE", help="default: as kubectl finds it")
    return verb


def _named(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", metavar="NAME", help="of the Reranker")


def _duration(text: str) -> float:
    try:
        return units.parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
