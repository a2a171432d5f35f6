"""What all child objects share: owner, labels, digests, and the comparison of a manifest with what is stored."""

import hashlib
import re
from decimal import Decimal
from typing import Any

import msgspec
from rerank_api import names
from rerank_api.reranker import Metadata


def owner_reference(owner: Metadata, kind: str = names.KIND) -> dict[str, Any]:
    """Ties a child to its owner: garbage collection removes it, and there is no finalizer to get stuck on."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def labels(reranker: str, revision: str | None = None) -> dict[str, str]:
    own = {
        names.LABEL_NAME: names.APP_NAME,
        names.LABEL_INSTANCE: reranker,
        names.LABEL_COMPONENT: names.COMPONENT_WORKER,
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_RERANKER: reranker,
    }
    return own | {names.LABEL_REVISION: revision} if revision else own


def pod_selector(reranker: str) -> str:
    """The label selector of all worker pods of a Reranker, as text."""
    return f"{names.LABEL_RERANKER}={reranker},{names.LABEL_COMPONENT}={names.COMPONENT_WORKER}"


def metadata(owner: Metadata, name: str, revision: str | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": labels(owner.name, revision),
        "ownerReferences": [owner_reference(owner)],
    }


def stamp(manifest: dict[str, Any]) -> dict[str, Any]:
    """``manifest`` with its own digest: a stored object that bears it and differs was changed by someone else."""
    digest = hashlib.sha256(msgspec.json.encode(manifest, order="deterministic")).hexdigest()[:16]
    return manifest | {"metadata": manifest["metadata"] | {"annotations": {names.ANNOTATION_APPLIED: digest}}}


def differences(wanted: Any, found: Any, path: str = "") -> list[str]:
    """Paths at which ``found`` lacks what ``wanted`` says; what ``found`` has beyond it (defaults) does not count.

    List items are matched by position, but keyed ones (by name and the like) where they are: a sidecar that an
    admission webhook put in front is not a difference.
    """
    if isinstance(wanted, dict) and isinstance(found, dict):
        return [
            place
            for key, value in wanted.items()
            for place in (
                differences(value, found[key], f"{path}.{key}" if path else key)
                if key in found
                else ([] if value in ({}, []) else [f"{path}.{key}" if path else key])
            )
        ]
    if isinstance(wanted, list) and isinstance(found, list):
        if key := merge_key(path, wanted):
            by_key = {item.get(key): item for item in found if isinstance(item, dict)}
            return [
                place for item in wanted for place in differences(item, by_key.get(item[key]), f"{path}[{item[key]}]")
            ]
        if len(wanted) != len(found):
            return [path]
        return [
            place
            for index, (mine, theirs) in enumerate(zip(wanted, found, strict=True))
            for place in differences(mine, theirs, f"{path}[{index}]")
        ]
    amounts = ".resources." in f".{path}" or path.endswith(".sizeLimit")
    return [] if _same_scalar(wanted, found) or (amounts and _same_amount(wanted, found)) else [path]


_MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "ownerReferences": "uid",
}
"""Lists that Kubernetes merges item by item, and the field that tells the items apart (its patchMergeKey)."""


def merge_key(path: str, items: list[Any]) -> str | None:
    """The field that tells the items of the list at ``path`` apart; None for lists that are one value."""
    key = _MERGE_KEYS.get(path.rsplit(".", 1)[-1])
    return key if key and all(isinstance(item, dict) and key in item for item in items) else None


_AMOUNT = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?\d{1,2}))?")
_TENS = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_TWOS = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


def _same_amount(wanted: Any, found: Any) -> bool:
    """Kubernetes stores quantities in its own spelling: "0.5" comes back as "500m", "1024Mi" as "1Gi"."""
    return amount(wanted) is not None and amount(wanted) == amount(found)


def amount(value: Any) -> Decimal | None:
    """The number that a Kubernetes quantity stands for; None: it is none."""
    match = _AMOUNT.fullmatch(str(value))
    if match is None:
        return None
    number, unit, exponent = match.groups()
    scale = Decimal(2) ** _TWOS[unit] if unit in _TWOS else Decimal(10) ** int(exponent or _TENS.get(unit, 0))
    return Decimal(number) * scale


def _same_scalar(wanted: Any, found: Any) -> bool:
    """Numbers may come back as text: 1 as "1"."""
    if isinstance(wanted, bool) or isinstance(found, bool):
        return wanted is found
    return wanted == found or (wanted is not None and str(wanted) == str(found))
