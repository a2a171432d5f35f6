"""Entry point: ``rerank-worker`` and ``python -m rerank_worker``."""

import logging
import os
import sys
from typing import NoReturn

from rerank_worker import cli


def main() -> NoReturn:
    code = cli.main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread inside a library (a load, a forward pass) cannot be stopped, and tearing the interpreter down under it
    # crashes: everything that matters is flushed, so leave at once.
    os._exit(code)


if __name__ == "__main__":
    main()
