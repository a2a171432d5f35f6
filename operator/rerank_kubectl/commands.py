"""The commands that a person can type next, in full, with what each does. Pure."""

import shlex

import msgspec
from rerank_api.reranker import Reranker

from rerank_kubectl.state import canary, held_by_annotation, rejected, unproven


class Call(msgspec.Struct, frozen=True):
    """How this command was called, so that the next one is given as it must be typed."""

    context: str | None = None
    kubeconfig: str | None = None

    def flags(self) -> list[str]:
        given = {"context": self.context, "kubeconfig": self.kubeconfig}
        return [f"--{flag}={value}" for flag, value in given.items() if value]


class Next(msgspec.Struct, frozen=True):
    what: str
    command: str


def command(verb: str, reranker: Reranker, call: Call, *more: str) -> str:
    metadata = reranker.metadata
    words = ["kubectl", "rerank", verb, metadata.name, "-n", metadata.namespace, *more, *call.flags()]
    return shlex.join(words)


def patch_command(reranker: Reranker, call: Call) -> str:
    """Takes the spec's own pause away."""
    metadata, patch = reranker.metadata, '{"spec":{"rollout":{"paused":false}}}'
    words = ["kubectl", "patch", "reranker", metadata.name, "-n", metadata.namespace, "--type=merge", "-p", patch]
    return shlex.join([*words, *call.flags()])


def next_commands(reranker: Reranker, call: Call) -> list[Next]:
    """What fits the state that it is in, the likeliest first."""
    rollout = canary(reranker)
    listed: list[Next] = []
    if rollout is None:
        if rejected(reranker) is not None:
            listed.append(Next("try the rejected revision again", command("retry", reranker, call)))
        listed.append(Next("see how earlier rollouts ended", command("history", reranker, call)))
        return listed
    abort = Next("take it back", command("abort", reranker, call, f"--revision={rollout.revision}"))
    if rollout.phase == "Promoting":
        return [Next("see it end", command("status", reranker, call, "--watch")), abort]
    if reranker.spec.rollout.paused:
        listed.append(Next("let it go on (the spec holds it)", patch_command(reranker, call)))
    if held_by_annotation(reranker):
        listed.append(Next("let it go on", command("resume", reranker, call)))
    if not (listed or rollout.paused):
        listed.append(Next("see it through to its end", command("status", reranker, call, "--watch")))
        listed.append(Next("keep it where it is", command("pause", reranker, call)))
    if rollout.differed and reranker.spec.observability.capture is not None:
        listed.append(Next("read what differed most", command("samples", reranker, call, "--disagreements")))
    listed.append(abort)
    # With --force where it would be refused without: who reads it has what is not shown before their eyes.
    left = unproven(rollout)
    what = "promote it now" + (" (it has not shown yet that it is no worse)" if left else "")
    force = ["--force"] if left else []
    listed.append(Next(what, command("promote", reranker, call, f"--revision={rollout.revision}", *force)))
    return listed
