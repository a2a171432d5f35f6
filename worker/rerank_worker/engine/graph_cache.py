"""Exported graphs on disk, so that only the first start with a model pays for the export.

An entry is named by what it was made from (weights, config.json, library versions) and checked by its own sha256 when
it is read; one that is damaged is made again. Entries appear whole, by a rename, also with several writers. Never holds
anything but what can be made again.
"""

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rerank_worker.failures import EnvironmentFailure
from rerank_worker.loading.checkpoint import Checkpoint

log = logging.getLogger(__name__)

FORMAT = 1
"""Raised when the same inputs give other graphs."""

KEPT = 8
"""Entries, the latest used; more are removed when one is written."""

ABANDONED = 3600.0
"""Seconds after which a half-written entry counts as left behind by a process that died."""

_SUMS = "sha256.json"

_LOCK = ".lock"

_UNWRITABLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOLCK}
)
"""Of a cache; transformers has OSErrors of its own, for models that it cannot read."""


def root() -> Path:
    """$XDG_CACHE_HOME, or .cache in the home folder, which in a pod is the cache volume."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rerank-worker" / "graphs"


def key(checkpoint: Checkpoint, kind: str, packages: Sequence[str]) -> str:
    """A name for the graph of ``checkpoint``: a sha256 over all that it depends on.

    ``kind``: what is made of it, such as onnx-int8; ``packages``: whose versions matter beside torch's.
    """
    digest = hashlib.sha256()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", *packages)}
    digest.update(json.dumps([FORMAT, kind, checkpoint.takes_types, versions], sort_keys=True).encode())
    for path in [checkpoint.folder / "config.json", *sorted(checkpoint.folder.glob("*.safetensors"))]:
        digest.update(f"\n{path.name} {_sha256(path)}".encode())
    return f"{kind}-{digest.hexdigest()}"


def entry(name: str, make: Callable[[Path], None], folder: Path | None = None) -> Path:
    """The folder of entry ``name``; ``make`` fills a new one when there is none, or a damaged one.

    Raises EnvironmentFailure when the cache cannot be written, and what ``make`` raises.
    """
    place = (folder or root()) / name
    if place.is_dir():
        if _sound(place):
            _used(place)
            return place
        log.warning("a cached graph is damaged and is made again", extra={"fields": {"entry": name}})
    started = time.monotonic()
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=place.parent))
        try:
            make(draft)
            (draft / _SUMS).write_text(json.dumps(_sums(draft)))
            _publish(draft, place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        _prune(place)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise EnvironmentFailure(
            f"the cache of exported graphs cannot be written ({place.parent}: {error.strerror or error}): give it "
            "space, or set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    fields = {"entry": name, "seconds": round(time.monotonic() - started, 3)}
    log.info("a model was exported", extra={"fields": fields})
    return place


def _publish(draft: Path, place: Path) -> None:
    """Rename, one writer at a time: whoever comes later leaves a sound entry alone, which others may be reading."""
    with (place.parent / _LOCK).open("w") as lock:
        # Ends with the file, also when the process is killed.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.is_dir():
            if _sound(place):
                return
            shutil.rmtree(place)
        draft.rename(place)


def _sound(place: Path) -> bool:
    try:
        return json.loads((place / _SUMS).read_text()) == _sums(place)
    except (OSError, ValueError):
        return False


def _sums(place: Path) -> dict[str, str]:
    return {path.name: _sha256(path) for path in sorted(place.iterdir()) if path.name != _SUMS}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _used(place: Path) -> None:
    try:
        os.utime(place)
    except OSError:
        # A cache that is mounted read-only serves as well.
        return


def _prune(newest: Path) -> None:
    """Remove drafts of dead processes, and all but the latest ``KEPT`` entries."""
    entries = []
    for place in newest.parent.iterdir():
        try:
            used = place.stat().st_mtime
        except OSError:
            continue
        if not place.name.startswith("."):
            entries.append((used, place))
        elif place.name != _LOCK and time.time() - used > ABANDONED:
            shutil.rmtree(place, ignore_errors=True)
    entries.sort(reverse=True)
    for _, place in entries[KEPT:]:
        if place != newest:
            shutil.rmtree(place, ignore_errors=True)
