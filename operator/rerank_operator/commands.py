"""How a command of its own ends, whoever reads its output. Knows nothing of what it does."""

import os
import signal
import sys
from collections.abc import Callable


def end_with(main: Callable[[], int]) -> None:
    """Exits with the status of ``main``; a reader that has had enough, and a person who stops it, are no tracebacks."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # of a reader such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the exit flushes into it once more
        code = 0
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT  # as shells tell of it
    sys.exit(code)
