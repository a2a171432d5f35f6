"""``python -m rerank_operator.scaling.simulate``: see ``--help``."""

import sys

from rerank_operator.scaling.simulate.cli import main

if __name__ == "__main__":
    sys.exit(main())
