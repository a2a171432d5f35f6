"""Measure nDCG@10 of the demo model on held-out queries, against BM25 and the plain bi-encoder.

`python tests/models/evaluate.py --help`. Each method orders the same candidates of the same queries; differences are
paired by query, with bootstrap intervals. Reads the built folders and the data beside this script; changes nothing.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from build import DEFAULT_OUT, build
from first_stage import FirstStage, plain_encoder
from ranking import bootstrap_interval, ndcg
from records import Question, read_evaluation
from sentence_transformers import CrossEncoder

HERE = Path(__file__).parent
HELD_OUT = HERE / "held_out.jsonl.gz"
BI_ENCODER_LENGTH = 256  # the length it was published with


@dataclass(frozen=True)
class Figure:
    """A mean over the queries with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def figure(values: Sequence[float]) -> Figure:
    low, high = bootstrap_interval(values)
    return Figure(sum(values) / len(values), low, high)


def first_stage_ndcg(questions: Sequence[Question], passages: dict[str, str]) -> dict[str, list[float]]:
    """nDCG@10 by query of BM25 and the bi-encoder, both over all the passages of the file."""
    names = list(passages)
    position = {name: index for index, name in enumerate(names)}
    stage = FirstStage([passages[name] for name in names], plain_encoder(BI_ENCODER_LENGTH))
    cosines = stage.cosines([question["query"] for question in questions])
    found: dict[str, list[float]] = {"BM25": [], "bi-encoder": []}
    for row, question in enumerate(questions):
        candidates = [position[name] for name in question["candidates"]]
        relevant = question["candidates"].index(question["relevant"])
        found["BM25"].append(ndcg(stage.bm25_scores(question["query"])[candidates].tolist(), relevant))
        found["bi-encoder"].append(ndcg(cosines[row, candidates].tolist(), relevant))
    return found


def cross_encoder_ndcg(folder: Path, questions: Sequence[Question], passages: dict[str, str]) -> list[float]:
    """nDCG@10 by query of a built folder, scored as CrossEncoder.predict scores."""
    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    pairs = [(question["query"], passages[name]) for question in questions for name in question["candidates"]]
    scores = model.predict(pairs, batch_size=16, show_progress_bar=False).tolist()
    found, start = [], 0
    for question in questions:
        own = scores[start : start + len(question["candidates"])]
        found.append(ndcg(own, question["candidates"].index(question["relevant"])))
        start += len(own)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HELD_OUT, help="evaluation file (default: the held-out queries)")
    parser.add_argument("--queries", type=int, help="only the first so many (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args()
    questions, passages = read_evaluation(arguments.data)
    questions = questions[: arguments.queries]
    found = first_stage_ndcg(questions, passages)
    for variant, folder in DEFAULT_OUT.items():
        build(folder, variant)
        found[f"cross-encoder, {variant}"] = cross_encoder_ndcg(folder, questions, passages)

    means = {method: figure(values) for method, values in found.items()}
    good = found["cross-encoder, good"]
    gains = {
        method: figure([ours - theirs for ours, theirs in zip(good, values, strict=True)])
        for method, values in found.items()
        if values is not good
    }
    if arguments.json:
        report = {
            "queries": len(questions),
            "ndcg@10": {method: asdict(value) for method, value in means.items()},
            "gain of the good cross-encoder": {method: asdict(value) for method, value in gains.items()},
        }
        print(json.dumps(report, indent=1))
        return
    print(f"{len(questions)} queries, {len(questions[0]['candidates'])} candidates each\n")
    print("| method | nDCG@10 | 95 % interval |\n|---|---|---|")
    for method, value in means.items():
        print(f"| {method} | {value.mean:.3f} | {value.low:.3f} to {value.high:.3f} |")
    print("\n| the good cross-encoder against | difference | 95 % interval, paired |\n|---|---|---|")
    for method, value in gains.items():
        print(f"| {method} | {value.mean:+.3f} | {value.low:+.3f} to {value.high:+.3f} |")


if __name__ == "__main__":
    main()
