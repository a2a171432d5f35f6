"""``python -m rerank_operator.scaling.simulate``: see ``--help``."""

from rerank_operator.commands import end_with
from rerank_operator.scaling.simulate.cli import main

if __name__ == "__main__":
    end_with(main)
