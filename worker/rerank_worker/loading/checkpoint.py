"""A verified model folder and what was decided about it: all that an engine is built from.

Loads weights only when an engine asks for the transformers module; never runs code that came with the model.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rerank_api.reranker import Compile

from rerank_worker.engine.device import ChosenDevice, ChosenPrecision
from rerank_worker.failures import ConfigurationFailure
from rerank_worker.loading.prompts import Prompt

_TYPED = ("Albert", "Bert", "Camembert", "Electra", "Roberta", "XLMRoberta")
"""Models that have two types where config.json does not say how many: the defaults of transformers."""


@dataclass(slots=True)
class Checkpoint:
    """``config``: config.json; ``tokenizer``: the transformers one; ``precision``: what matrices are multiplied in."""

    folder: Path
    config: dict[str, Any]
    architecture: str
    tokenizer: Any
    device: ChosenDevice
    precision: ChosenPrecision
    max_length: int
    length_bucket: int
    threads: int
    compile: Compile = "never"
    prompt: Prompt | None = None
    """How a decoder is asked; None for other models."""
    _modules: dict[str, Any] = field(default_factory=dict)

    @property
    def pad_token_id(self) -> int:
        own = self.tokenizer.pad_token_id
        return own if own is not None else self.config.get("pad_token_id") or 0

    @property
    def takes_types(self) -> bool:
        """Whether the model tells query and document apart by type ids."""
        types = self.config.get("type_vocab_size", 2 if self.architecture.startswith(_TYPED) else 0)
        return "token_type_ids" in self.tokenizer.model_input_names and bool(types)

    def at(self, precision: ChosenPrecision) -> "Checkpoint":
        """The same files at another precision."""
        return replace(self, precision=precision)

    def module(self, dtype: Any) -> Any:
        """The transformers module on the CPU with weights as ``dtype``, in eval mode, without gradients.

        Loaded once a dtype; an engine that moves or empties it must take it for itself with ``release``. Raises
        ConfigurationFailure, or torch's own errors when memory runs out.
        """
        key = str(dtype)
        if key not in self._modules:
            self._modules[key] = _load(self.folder, dtype, self.architecture)
        return self._modules[key]

    def release(self) -> None:
        """Forget the loaded modules."""
        self._modules.clear()


def _load(folder: Path, dtype: Any, architecture: str) -> Any:
    import transformers

    causal = architecture.endswith("ForCausalLM")
    kind: Any = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    try:
        module, notes = kind.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except RuntimeError as error:
        # transformers' words are about an option and a report, neither of which anybody here sees.
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ConfigurationFailure(
            "spec.model.uri: the model's weights have other shapes than its config.json asks for (vocab_size, "
            "hidden_size and their like): restore the config.json that belongs to the weights"
        ) from error
    if notes["missing_keys"]:
        missing = ", ".join(sorted(notes["missing_keys"])[:3])
        raise ConfigurationFailure(
            f"spec.model.uri: the model's weights lack {missing}: transformers would fill them with random numbers; "
            "use a model that was trained as a cross-encoder"
        )
    return module.eval().requires_grad_(False)
