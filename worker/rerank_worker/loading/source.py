"""Where the model's files are: a local folder as it is, or a snapshot of a hub repository at a pinned revision.

Only file kinds that the worker reads are fetched: never code, never pickled weights.
"""

import os
from pathlib import Path

from rerank_api.worker_config import ModelSource

from rerank_worker.failures import ConfigurationFailure, EnvironmentFailure

FILES = ("*.json", "*.safetensors", "*.txt", "chat_template.jinja", "*_LogitScore/config.json")
"""What the worker reads of a model: configuration, weights, vocabularies, a decoder's prompt and answers."""


_OFFLINE = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
"""Whether whoever started the process wants no downloads."""


def model_name(source: ModelSource) -> str:
    """How logs, metrics and errors call the model."""
    return source.repo if source.repo is not None else str(source.path)


def parse_model(text: str, revision: str | None) -> ModelSource:
    """The source that a person names on the command line: a folder, file:///path or hf://org/name."""
    if text.startswith("hf://"):
        return ModelSource(repo=text.removeprefix("hf://").strip("/"), revision=revision)
    if revision is not None:
        raise ConfigurationFailure(
            "--revision belongs to hf:// models only: drop it, or name the model as hf://ORG/NAME"
        )
    return ModelSource(path=str(Path(text.removeprefix("file://")).absolute()))


def resolve(source: ModelSource) -> Path:
    """The folder with the model's files; downloads them when the source is a hub repository.

    Raises a StartupFailure that names the spec field.
    """
    if (source.path is None) == (source.repo is None):
        raise ConfigurationFailure("the worker's model source needs exactly one of path and repo")
    if source.repo is not None:
        return _snapshot(source.repo, source.revision)
    folder = Path(str(source.path))
    if not folder.is_dir():
        kind = "is a file, not a folder" if folder.exists() else "does not exist in the worker's container"
        raise ConfigurationFailure(
            f"spec.model.uri: the folder {folder} {kind}: name a Hugging Face model folder that the image or a volume "
            "holds"
        )
    return folder


def resolved_revision(source: ModelSource, folder: Path) -> str | None:
    """The commit that a snapshot folder holds (the hub's cache names snapshot folders by commit)."""
    return folder.name if source.repo is not None else None


def go_offline() -> None:
    """Keep every library of the hub's from the network, until another model is to be downloaded."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from huggingface_hub import constants

    # The environment is read once, at the first import: a download has had that already.
    constants.HF_HUB_OFFLINE = True


def _snapshot(repo: str, revision: str | None) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    # An earlier model of this process has gone offline.
    constants.HF_HUB_OFFLINE = _OFFLINE
    where = f"hf://{repo}" + (f" at revision {revision}" if revision else "")
    try:
        # "*" matches "/" too: without the second list, exports in subfolders (onnx/, openvino/) would come along. The
        # folders of sentence-transformers' modules begin with their number.
        # The library itself tries each request several times, with pauses; after that the kubelet starts us again.
        folder = snapshot_download(repo, revision=revision, allow_patterns=list(FILES), ignore_patterns=["[!0-9]*/*"])
    except errors.GatedRepoError as error:
        raise ConfigurationFailure(
            f"spec.model.uri: {where} is gated: accept its terms on the hub and give the worker HF_TOKEN through "
            "spec.runtime.podTemplate"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigurationFailure(
            f"spec.model.uri: the hub has no repository {repo} that this worker may read: check the name, or give "
            "HF_TOKEN through spec.runtime.podTemplate"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigurationFailure(f"spec.model.revision: hf://{repo} has no revision {revision}") from error
    except errors.HFValidationError as error:
        raise ConfigurationFailure(f"spec.model.uri: {repo!r} is not a hub repository name: {error}") from error
    except (OSError, errors.HTTPError) as error:
        raise EnvironmentFailure(
            f"cannot download {where}: {type(error).__name__}: {error}: check the network, HF_ENDPOINT and the space "
            "in the worker's cache volume, or use a pvc:// model"
        ) from error
    return Path(folder)
