"""Debian's package descriptions as search questions and passages.

Parses the archive's index files, cleans the text, drops near duplicates and splits by source package. Pure functions
of the files' text: the same lists give the same corpus. Must never let two binary packages of one source, or two
passages that are near duplicates, land on different sides of the split.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

SPLITS = (("train", 70), ("validation", 5), ("test", 25))  # percent of the source packages
MIN_PASSAGE, MAX_PASSAGE = 120, 700  # characters
MIN_QUERY_WORDS, MAX_QUERY_WORDS = 3, 16
NEAR_DUPLICATE = 0.5  # Jaccard similarity of word 3-shingles from which two passages count as the same
SKIPPED_SECTIONS = frozenset({"debug", "oldlibs", "localization", "metapackages", "translations"})
SKIPPED_WORDS = re.compile(
    r"\b(transitional|dummy|metapackage|meta-package|debug(ging)? symbols|language pack|task)\b", re.IGNORECASE
)
STOP_WORDS = frozenset(["a", "an", "and", "are", "as", "at", "by", "can", "for", "from", "has", "in", "into", "is"])
STOP_WORDS |= {"it", "its", "of", "on", "or", "that", "the", "this", "to", "with"}
WORD = re.compile(r"[a-z0-9][a-z0-9+#]*")
AFFIXES = re.compile(
    r"^(?:lib|python3?-|ruby-|node-|golang-|r-cran-|r-bioc-|elpa-|librust-|libghc-)"
    r"|(?:-dev|-doc|-data|-common|-bin|-utils|-tools|-perl|-java|-el|-gtk|-qt5?)$"
    r"|[0-9.]+(?:-[0-9.]+)*$"
)


@dataclass(frozen=True)
class Package:
    """One binary package: its question (the synopsis without the name) and its passage (the long description)."""

    name: str
    source: str
    version: str
    split: str
    query: str
    passage: str


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """The paragraphs of a Debian control file, as field -> value with continuation lines kept."""
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        key = ""
        for line in block.split("\n"):
            if line.startswith((" ", "\t")):
                fields[key] += "\n" + line
            elif ":" in line:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
        if fields:
            yield fields


def long_description(lines: str) -> str:
    """The body of a Description field as one paragraph of running text, cut at a word near MAX_PASSAGE."""
    body = [line.strip() for line in lines.split("\n")[1:]]
    text = " ".join("" if line == "." else line for line in body)
    text = re.sub(r"\s+", " ", text).strip()
    if len(text) > MAX_PASSAGE:
        text = text[:MAX_PASSAGE].rsplit(" ", 1)[0]
    return text


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def name_stems(*names: str) -> set[str]:
    """A package's names, and the same without the affixes that only say what kind of package it is."""
    stems: set[str] = set()
    for name in names:
        stem = name.lower()
        while stem not in stems and len(stem) > 1:
            stems.add(stem)
            stem = AFFIXES.sub("", stem)
    return stems


def question(synopsis: str, stems: set[str]) -> str:
    """The synopsis without the package's name, which would otherwise give the answer away."""
    kept = []
    for token in synopsis.split():
        bare = token.strip("()[],.:;'\"").lower()
        if bare not in stems:
            kept.append(token)
    return " ".join(kept).strip(" -:;,.")


def split_of(source: str) -> str:
    """The side of a source package, by hash, so that it does not move when the archive changes."""
    point = int.from_bytes(hashlib.sha256(f"split:{source}".encode()).digest()[:8], "big") % 100
    for name, share in SPLITS:
        if point < share:
            return name
        point -= share
    raise AssertionError("SPLITS must add up to 100")


def shingles(text: str) -> np.ndarray:
    """Hashes of the passage's word 3-grams, sorted and unique."""
    tokens = words(text)
    grams = {" ".join(tokens[i : i + 3]) for i in range(max(1, len(tokens) - 2))}
    hashes = [int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=8).digest(), "big") for gram in grams]
    return np.unique(np.array(hashes, dtype=np.uint64))


def first_of_each_kind(passages: Iterable[str]) -> list[int]:
    """Indices of the passages that are no near duplicate of an earlier kept one (MinHash bands, then exact Jaccard)."""
    generator = np.random.default_rng(0)
    multipliers = generator.integers(1, 2**63, size=64, dtype=np.uint64) | np.uint64(1)
    buckets: dict[tuple[int, bytes], list[int]] = {}
    kept_shingles: dict[int, np.ndarray] = {}
    for index, passage in enumerate(passages):
        own = shingles(passage)
        minima = (own[:, None] * multipliers[None, :]).min(axis=0)
        keys = [(band, minima[band * 2 : band * 2 + 2].tobytes()) for band in range(32)]
        seen = {other for key in keys for other in buckets.get(key, ())}
        if any(_jaccard(own, kept_shingles[other]) >= NEAR_DUPLICATE for other in seen):
            continue
        kept_shingles[index] = own
        for key in keys:
            buckets.setdefault(key, []).append(index)
    return list(kept_shingles)


def _jaccard(left: np.ndarray, right: np.ndarray) -> float:
    shared = np.intersect1d(left, right, assume_unique=True).size
    return shared / (left.size + right.size - shared)


def read_packages(packages: str, translations: str) -> list[Package]:
    """The usable packages of one archive index and its long descriptions, near duplicates dropped, in a fixed order."""
    bodies = {fields["Description-md5"]: fields["Description-en"] for fields in stanzas(translations)}
    found: list[Package] = []
    for fields in stanzas(packages):
        body = bodies.get(fields.get("Description-md5", ""))
        if body is None or fields["Section"].split("/")[-1] in SKIPPED_SECTIONS:
            continue
        synopsis, passage = body.split("\n", 1)[0], long_description(body)
        source, name = fields.get("Source", fields["Package"]).split()[0], fields["Package"]
        query = question(synopsis, name_stems(name, source))
        content = [word for word in words(query) if word not in STOP_WORDS]
        if SKIPPED_WORDS.search(synopsis) or len(passage) < MIN_PASSAGE:
            continue
        if not MIN_QUERY_WORDS <= len(content) <= MAX_QUERY_WORDS:
            continue
        found.append(Package(name, source, fields["Version"], split_of(source), query, passage))
    # The package that carries the source's name is the likeliest to describe the software as a whole: keep it first.
    found.sort(key=lambda package: (package.name != package.source, package.name))
    return [found[index] for index in first_of_each_kind(package.passage for package in found)]
