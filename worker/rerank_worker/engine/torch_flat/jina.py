"""How jina-reranker-v2 is told from other models. Reads configuration only and imports no torch."""

from collections.abc import Mapping
from typing import Any

_CODE = {
    "AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig",
    "AutoModelForSequenceClassification": "modeling_xlm_roberta.XLMRobertaForSequenceClassification",
}


def jina_flash_config(config: Mapping[str, Any]) -> bool:
    """Whether config.json is that of jina-reranker-v2 or a model tuned from it: XLM-R under other names.

    Source: config.json of huggingface.co/jinaai/jina-reranker-v2-base-multilingual. Its code is neither needed nor run.
    """
    code = config.get("auto_map")
    return (
        config.get("architectures") == ["XLMRobertaForSequenceClassification"]
        and isinstance(code, Mapping)
        # A repository may be named before the class, as in "owner/model--file.Class".
        and all(str(code.get(kind, "")).rpartition("--")[2] == name for kind, name in _CODE.items())
    )
