"""``python -m rerank_operator.rollout.simulate``: see ``--help``."""

import os
import signal
import sys

from rerank_operator.rollout.simulate.cli import main

if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output (head) has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the exit flushes into it once more
        code = 0
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT  # as shells tell of it
    sys.exit(code)
