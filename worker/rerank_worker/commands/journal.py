"""What a run of ``score`` has done so far, so that it can be killed at any moment and go on where it stood.

Two files beside the output: OUTPUT.part with one line a row, and OUTPUT.progress, which says how much of OUTPUT.part
counts and what it was made from. Whatever is in OUTPUT.part beyond that was being written when the run ended, and is
cut off. The output itself is written when all is scored, whole or not at all.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from rerank_worker.commands.rows import Place, Result, sync_folder
from rerank_worker.failures import ConfigurationFailure

VERSION = 1

RESTART = "start over with --restart, or finish with what it was begun with"


class Done(msgspec.Struct, frozen=True):
    """``bytes`` of OUTPUT.part hold ``rows`` rows, all before ``place`` in the input."""

    place: Place = Place()
    rows: int = 0
    bytes: int = 0
    pairs: int = 0
    bad: int = 0
    truncated: int = 0


class _Progress(msgspec.Struct):
    version: int
    source: dict[str, Any]
    """What the scores depend on: the input's checksum, the model's, the options; by their names for people."""
    done: Done


class Journal:
    """Exclusive: a second process that opens it is refused. Raises ConfigurationFailure."""

    def __init__(self, output: Path, restart: bool) -> None:
        self._part = output.with_name(output.name + ".part")
        self._progress = output.with_name(output.name + ".progress")
        begun = self._progress.is_file()
        if output.exists() and not begun and not restart:
            raise ConfigurationFailure(f"--output {output} exists already: name another file, or use --restart")
        try:
            self._file: BinaryIO = self._part.open("a+b")
        except OSError as error:
            raise ConfigurationFailure(f"--output {output} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the file since it was opened here.
            if not os.path.samestat(os.fstat(self._file.fileno()), self._part.stat()):
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError) as error:
            self._file.close()
            raise ConfigurationFailure(f"another process is writing {output}: wait for it, or end it") from error
        except OSError as error:
            self._file.close()
            raise ConfigurationFailure(f"--output {output}: {self._part} cannot be locked: {error.strerror}") from error
        if restart:
            self._progress.unlink(missing_ok=True)
        self._source: dict[str, Any] = {}
        self._found = self._read(output)
        self.done = Done() if self._found is None else self._found.done

    def _read(self, output: Path) -> _Progress | None:
        try:
            content = self._progress.read_bytes()
        except FileNotFoundError:
            return None
        try:
            found = msgspec.json.decode(content, type=_Progress)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigurationFailure(f"{self._progress} is damaged ({error}): start over with --restart") from error
        if found.version != VERSION:
            raise ConfigurationFailure(f"{output} was begun by another release of the worker: {RESTART}")
        if self._part.stat().st_size < found.done.bytes:
            raise ConfigurationFailure(f"{self._part} is shorter than it was: start over with --restart")
        return found

    def check(self, **facts: Any) -> None:
        """Refuse to go on with a run that had other ``facts``."""
        for name, value in facts.items():
            # Where nothing counts yet, nothing is lost by beginning with others.
            if self._found is not None and self._found.done.rows and self._found.source.get(name) != value:
                what = name.replace("_", " ")
                raise ConfigurationFailure(f"this run was begun with another {what}: {RESTART}")
        self._source |= facts

    def begin(self) -> None:
        """Cut off what does not count; from now on ``append`` may be called."""
        self._file.truncate(self.done.bytes)
        self._file.seek(0, os.SEEK_END)
        self._save()

    def append(self, results: Sequence[Result], place: Place, pairs: int, bad: int, truncated: int) -> None:
        """Add the rows up to ``place``; they count, and last, once this returns."""
        lines = b"".join(msgspec.json.encode(result) + b"\n" for result in results)
        self._file.write(lines)
        self._file.flush()
        os.fsync(self._file.fileno())
        done = self.done
        self.done = Done(
            place=place,
            rows=done.rows + len(results),
            bytes=done.bytes + len(lines),
            pairs=done.pairs + pairs,
            bad=done.bad + bad,
            truncated=done.truncated + truncated,
        )
        self._save()

    def _save(self) -> None:
        new = self._progress.with_name(self._progress.name + ".new")
        with new.open("wb") as file:
            file.write(msgspec.json.encode(_Progress(VERSION, self._source, self.done)))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._progress)
        sync_folder(self._progress.parent)

    def results(self) -> Iterator[Result]:
        """Every row's result, in order."""
        decoder = msgspec.json.Decoder(float | list[float] | dict[str, str])
        with self._part.open("rb") as file:
            for line in file:
                yield decoder.decode(line)

    def remove(self) -> None:
        """Nothing is left to go on with, or nothing is there yet."""
        self._progress.unlink(missing_ok=True)
        self._part.unlink(missing_ok=True)

    def close(self) -> None:
        # On a full disk closing fails once more, which must not hide what went wrong.
        with suppress(OSError):
            if not self.done.rows:
                # Nothing counts, and a file without a row is in the way of whoever mends the command.
                self.remove()
            self._file.close()


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
