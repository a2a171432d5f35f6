"""Make the training groups and the held-out evaluation set out of Debian's package descriptions.

`python tests/models/dataset.py --help`. Needs apt (any Debian or Ubuntu); writes the training data to a scratch folder
that is never committed, and, with --write-held-out, the small files beside this script. Candidates of the held-out
queries come only from held-out packages; nothing here may read a score of the trained model.
"""

import argparse
import hashlib
import json
import random
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from corpus import Package, read_packages
from first_stage import FirstStage, plain_encoder
from records import Group, Question, write_rows

HERE = Path(__file__).parent
APT_HELPER = "/usr/lib/apt/apt-helper"
PASSAGES = {"train": 9000, "validation": 1000, "test": 6000}  # of each side's packages, the first in hash order
TRAIN_QUERIES, VALIDATION_QUERIES, HELD_OUT_QUERIES = 8000, 150, 300
NEGATIVES = 5  # hard ones a training group
MINING_LENGTH = 80  # tokens of a passage that the bi-encoder reads when it proposes candidates
DEPTH = 30  # how far down each first-stage ranking the training negatives are drawn from
CANDIDATES, DEMO_CANDIDATES = 20, 50
SEED = 20261121


def fetch_lists(folder: Path, suite: str) -> tuple[str, str, str]:
    """The archive's package index, its English long descriptions, and where they came from, by way of apt."""
    (folder / "partial").mkdir(parents=True, exist_ok=True)
    options = ["-o", f"Dir::State::Lists={folder.resolve()}", "-o", "Acquire::Languages=en"]
    subprocess.run(["apt-get", *options, "update"], check=True)

    def read(pattern: str) -> str:
        found = sorted(folder.glob(pattern))
        if len(found) != 1:
            raise SystemExit(f"apt left {len(found)} files {pattern} in {folder}; expected one: is {suite} a source?")
        return subprocess.run(
            [APT_HELPER, "cat-file", str(found[0])], check=True, capture_output=True, text=True
        ).stdout

    prefix = f"*debian_dists_{suite}_"
    packages = read(f"{prefix}main_binary-amd64_Packages*")
    translations = read(f"{prefix}main_i18n_Translation-en*")
    release = dict(line.split(": ", 1) for line in read(f"{prefix}InRelease").splitlines() if ": " in line)
    origin = (
        f"Debian {release['Version']} ({suite}) main, index of {release['Date']}; sha256 of Packages "
        f"{hashlib.sha256(packages.encode()).hexdigest()}, of Translation-en "
        f"{hashlib.sha256(translations.encode()).hexdigest()}"
    )
    return packages, translations, origin


def by_hash(packages: Iterable[Package]) -> list[Package]:
    """An order that depends on nothing but the names."""
    return sorted(packages, key=lambda package: hashlib.sha256(f"order:{package.name}".encode()).digest())


def pool(lexical: np.ndarray, nearest: np.ndarray, own: int, size: int) -> list[int]:
    """The query's own passage and the best of both rankings, taken in turns until there are `size` of them."""
    in_turns = np.stack([lexical, nearest], axis=1).ravel().tolist()
    return list(dict.fromkeys([own, *in_turns]))[:size]


def training_groups(stage: FirstStage, packages: Sequence[Package], count: int) -> list[Group]:
    """One group a query: its own passage first, then hard negatives from both rankings; the cosines will teach."""
    chance = random.Random(SEED)
    position = {package.name: index for index, package in enumerate(packages)}
    groups: list[Group] = []
    for block in range(0, count, 500):
        part = packages[block : min(block + 500, count)]
        for query, lexical, nearest, cosines in zip(
            part, *stage.rankings([query.query for query in part], DEPTH), strict=True
        ):
            own = position[query.name]
            hard = [index for index in pool(lexical, nearest, own, 2 * DEPTH) if index != own]
            members = [own, *chance.sample(hard, NEGATIVES)]
            passages = [packages[index].passage for index in members]
            taught = [round(float(cosines[index]), 4) for index in members]
            groups.append(Group(query=query.query, passages=passages, cosines=taught))
    return groups


def held_out(stage: FirstStage, packages: Sequence[Package], queries: Sequence[Package], size: int) -> list[Question]:
    """Query rows with candidates as package names; the candidates' order says nothing about the answer."""
    position = {package.name: index for index, package in enumerate(packages)}
    rows: list[Question] = []
    ranked = stage.rankings([query.query for query in queries], size)
    for query, lexical, nearest, _ in zip(queries, *ranked, strict=True):
        chosen = [packages[index] for index in pool(lexical, nearest, position[query.name], size)]
        names = [package.name for package in by_hash(chosen)]
        rows.append(Question(query=query.query, relevant=query.name, candidates=names))
    return rows


def write_evaluation(path: Path, rows: Sequence[Question], packages: Sequence[Package], origin: str) -> None:
    """The origin, the query rows, then each passage once with the package and version it is from."""
    wanted = {name for row in rows for name in row["candidates"]}
    texts = [
        {"package": p.name, "version": p.version, "source": p.source, "passage": p.passage}
        for p in packages
        if p.name in wanted
    ]
    write_rows(path, [{"origin": origin}, *rows, *texts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(".state/models/data"), help="scratch folder (%(default)s)")
    parser.add_argument("--suite", default="bookworm", help="the Debian release to read (%(default)s)")
    parser.add_argument(
        "--write-held-out", action="store_true", help="also replace held_out.jsonl.gz and demo_query.json"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    packages, translations, origin = fetch_lists(arguments.out / "lists", arguments.suite)
    sides: dict[str, list[Package]] = {"train": [], "validation": [], "test": []}
    for package in read_packages(packages, translations):
        sides[package.split].append(package)
    print(origin, {side: len(members) for side, members in sides.items()}, sep="\n", flush=True)

    encoder = plain_encoder(MINING_LENGTH)
    validation = by_hash(sides["validation"])[: PASSAGES["validation"]]
    stage = FirstStage([package.passage for package in validation], encoder)
    rows = held_out(stage, validation, validation[:VALIDATION_QUERIES], CANDIDATES)
    write_evaluation(arguments.out / "validation.jsonl.gz", rows, validation, origin)

    train = by_hash(sides["train"])[: PASSAGES["train"]]
    stage = FirstStage([package.passage for package in train], encoder)
    write_rows(arguments.out / "train.jsonl.gz", training_groups(stage, train, TRAIN_QUERIES))

    if arguments.write_held_out:
        test = by_hash(sides["test"])[: PASSAGES["test"]]
        stage = FirstStage([package.passage for package in test], encoder)
        rows = held_out(stage, test, test[:HELD_OUT_QUERIES], CANDIDATES)
        write_evaluation(HERE / "held_out.jsonl.gz", rows, test, origin)
        # The demo's query: the next held-out one in hash order, which the evaluation does not use.
        (demo,) = held_out(stage, test, [test[HELD_OUT_QUERIES]], DEMO_CANDIDATES)
        write_demo(HERE / "demo_query.json", demo, test, origin)


def write_demo(path: Path, row: Question, packages: Sequence[Package], origin: str) -> None:
    """The demo's query and passages as one readable file."""
    passages = {package.name: package.passage for package in packages}
    demo = {
        "origin": origin,
        "rule": "the first held-out query in hash order that the evaluation does not use",
        "query": row["query"],
        "relevant": [row["candidates"].index(row["relevant"])],
        "packages": row["candidates"],
        "documents": [passages[name] for name in row["candidates"]],
    }
    path.write_text(json.dumps(demo, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
