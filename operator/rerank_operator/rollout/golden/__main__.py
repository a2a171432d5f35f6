"""``python -m rerank_operator.rollout.golden``: see ``--help``."""

from rerank_operator.commands import end_with
from rerank_operator.rollout.golden.cli import main

if __name__ == "__main__":
    end_with(main)
