"""``python -m rerank_operator.rollout.simulate``: see ``--help``."""

from rerank_operator.rollout.simulate.cli import main
from rerank_operator.simulators import end_with

if __name__ == "__main__":
    end_with(main)
