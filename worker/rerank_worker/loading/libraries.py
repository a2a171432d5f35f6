"""What every load needs and none can do quickly: torch, transformers and the device, once a process.

Never reads a model.
"""

import importlib
from collections.abc import Iterable
from typing import Any

from rerank_worker.engine import process
from rerank_worker.loading import verify


def import_libraries(threads: int, architectures: Iterable[str]) -> None:
    """Import torch and what loads models of ``architectures``, for the whole process; the first time takes seconds.

    ``threads``: cores for torch, which they are set for.
    """
    process.prepare()
    import torch
    import transformers
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: F401 (they are lazy)
    from transformers.utils import logging as library_logging

    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    for architecture in architectures:
        # Asking imports it, and all that it needs: most of the time that the first load takes.
        hasattr(transformers, architecture)


def stand_by(threads: int) -> dict[str, Any]:
    """Do what every load needs and none can do quickly: import the libraries, initialise CUDA where there is one.

    Facts for /v1/info. Raises a StartupFailure when CUDA is there and does not start.
    """
    import_libraries(threads, verify.ARCHITECTURES)
    import torch

    from rerank_worker.engine import device as devices
    from rerank_worker.engine import select

    for name in select.candidates("auto"):
        importlib.import_module(select.ENGINES[name])
    device = devices.probe_device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "standby": True,
        "device": device,
        "deviceName": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": threads,
    }
