"""How a decoder is asked for a score: the prompt around query and document, and the tokens of its answer.

All of it comes from the model's files, as sentence-transformers' CrossEncoder reads them: the chat template (roles
"query" and "document", the instruction as "system"), the LogitScore module, the saved prompt. Nothing is made up: a
model whose files do not say how to rerank is refused. A template is rendered in transformers' sandbox while loading
only; what it does to texts other than placing them is refused, so that requests never render one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rerank_worker.failures import ConfigurationFailure
from rerank_worker.loading.verify import read_json, read_modules
from rerank_worker.tokenization import PairTokenizer, Template

# Texts whose ends could join a prompt's tokens, and texts that a careless template would change.
_PROBES = (
    ("what is this", "A document."),
    ("Really?", "(yes)"),
    ("  spaces  ", "\n\nlines\n\n"),
    ("tab\t", "\t"),
    ("query\n", " "),
    ("中文问题。", "资料「中文」。"),
    ("42", "3.14"),
    ("a<b>", "</think> {{ x }} {% y %}"),
    ("ünï\u0301", "\u0301combining"),
    ("'s", "'ll"),
    ("\nlines", "(text)"),
    ("q", ""),
)

_MARKS = ("\ue000q\ue001", "\ue002d\ue003")
"""Stand for query and document where the prompt around them is read off: private use, so in no template."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Text around query and document; ``yes`` and ``no``: token ids whose logits are compared (``no`` None: the logit
    of ``yes`` alone is the score; both None: the model has a head of one label)."""

    before: str
    between: str
    after: str
    yes: int | None
    no: int | None

    def text(self, query: str, document: str) -> str:
        return f"{self.before}{query}{self.between}{document}{self.after}"


def read_prompt(folder: Path, architecture: str, tokenizer: Any) -> Prompt:
    """The prompt that the files in ``folder`` give. ``tokenizer``: transformers'. Raises ConfigurationFailure."""
    causal = architecture.endswith("ForCausalLM")
    saved = (folder / "modules.json").is_file()
    own = read_json(folder, "config_sentence_transformers.json") if saved else {}
    transformer = read_json(folder, "sentence_bert_config.json") if saved else {}
    settings = _template_settings(transformer)
    if saved and "message" not in (transformer.get("modality_config") or {}):
        raise _lacking(architecture, "sentence_bert_config.json has no modality_config.message")
    structured = ((transformer.get("modality_config") or {}).get("message") or {}).get("format") == "structured"
    before, between, after = _render(tokenizer, architecture, _instruction(own), structured, settings)
    yes, no = _answers(folder, tokenizer, saved) if causal else (None, None)
    return Prompt(before, between, after, yes, no)


def pair_tokenizer(tokenizer: Any, prompt: Prompt, max_length: int) -> PairTokenizer:
    """Builds the token ids of ``prompt``; only documents are cut. What looks like a special token in a text is text,
    where sentence-transformers makes that token of it. Raises ConfigurationFailure unless it builds those of the whole
    text for texts of many kinds."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    before, query_lead = _split_end(prompt.before)
    rest, document_lead = _split_end(prompt.between)
    middle = rest.lstrip()
    query_trail = rest[: len(rest) - len(middle)]

    def ids(text: str) -> tuple[int, ...]:
        return tuple(backend.encode(text, add_special_tokens=False).ids)

    first, second, third = ids(before), ids(middle), ids(prompt.after)
    template = Template(
        before=first,
        between=second,
        after=third,
        query_type=0,
        document_type=0,
        special_types=((0,) * len(first), (0,) * len(second), (0,) * len(third)),
        cut_left=tokenizer.truncation_side == "left",
        query_edges=(query_lead, query_trail),
        document_edge=document_lead,
    )
    # A document that could write the tokens which end its turn could answer in the model's name.
    pairs = PairTokenizer(backend, max_length, template.cut_left, template, literal=True)
    for query, document in _PROBES:
        parts = [*first, *pairs.query(query), *second, *pairs.documents([document])[0], *third]
        if parts != list(ids(prompt.text(query, document))):
            raise ConfigurationFailure(
                "spec.model.uri: the model's prompt is not supported: its words and those of query or document are "
                "tokenized together, so that a document cannot be cut alone"
            )
    if max_length <= template.specials:
        raise ConfigurationFailure(
            f"spec.model.maxLength (--max-length) is {max_length}, but the model's prompt alone has "
            f"{template.specials} tokens"
        )
    return pairs


def _split_end(text: str) -> tuple[str, str]:
    """``text`` without its last white space, and that."""
    kept = text.rstrip()
    return kept, text[len(kept) :]


def _template_settings(transformer: Mapping[str, Any]) -> dict[str, Any]:
    """What the files hand to the chat template, such as add_generation_prompt."""
    asked = transformer.get("processing_kwargs") or {}
    others = sorted(set(asked) - {"chat_template"})
    settings = dict(asked.get("chat_template") or {})
    # The worker always keeps the text after the document.
    settings.pop("restore_suffix", None)
    others += sorted(set(settings) & {"truncation", "max_length", "padding", "tokenize", "chat_template"})
    if others:
        raise ConfigurationFailure(
            f"spec.model.uri: sentence_bert_config.json of the model sets processing_kwargs ({', '.join(others)}), "
            "which the worker does not follow"
        )
    return settings


def _instruction(own: Mapping[str, Any]) -> str | None:
    """The prompt that is saved as the default; None: the template's own."""
    name = own.get("default_prompt_name")
    if name is None:
        return None
    prompts = own.get("prompts") or {}
    if name not in prompts:
        raise ConfigurationFailure(
            f"spec.model.uri: config_sentence_transformers.json of the model has default_prompt_name {name!r}, which "
            "is not among its prompts"
        )
    return prompts[name] or None


def _render(
    tokenizer: Any, architecture: str, instruction: str | None, structured: bool, settings: Mapping[str, Any]
) -> tuple[str, str, str]:
    """The text before, between and after query and document."""
    if not tokenizer.chat_template:
        raise _lacking(architecture, "it has no chat template (chat_template.jinja)")

    def render(query: str, document: str) -> str:
        system = [("system", instruction)] if instruction else []
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if structured else text}
            for role, text in [*system, ("query", query), ("document", document)]
        ]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **settings))

    query, document = _MARKS
    try:
        text = render(query, document)
        if text.count(query) != 1 or text.count(document) != 1:
            raise _lacking(architecture, "its chat template does not place the roles query and document once each")
        before, _, rest = text.partition(query)
        between, found, after = rest.partition(document)
        if not found:
            raise _lacking(architecture, "its chat template places the document before the query")
        for probe in _PROBES:
            if render(*probe) != f"{before}{probe[0]}{between}{probe[1]}{after}":
                raise _lacking(architecture, "its chat template changes the texts that it places")
    except ConfigurationFailure:
        raise
    except Exception as error:
        raise _lacking(architecture, f"its chat template fails with {type(error).__name__}: {error}") from error
    return before, between, after


def _answers(folder: Path, tokenizer: Any, saved: bool) -> tuple[int, int | None]:
    """Token ids of the answers whose logits make the score."""
    size = len(tokenizer)
    if saved:
        modules = read_modules(folder)
        if len(modules) != 2 or modules[1].kind != "LogitScore":
            raise _lacking("Qwen3ForCausalLM", "modules.json has no LogitScore after the Transformer")
        content = read_json(folder, f"{modules[1].path}/config.json")
        yes, no = content.get("true_token_id"), content.get("false_token_id")
        if content.get("module_input_name", "causal_logits") != "causal_logits":
            raise ConfigurationFailure(
                f"spec.model.uri: module_input_name of LogitScore is {content['module_input_name']!r}, which the "
                "worker does not follow"
            )
        if not isinstance(yes, int) or not (no is None or isinstance(no, int)) or not _are_tokens(size, yes, no):
            raise _lacking("Qwen3ForCausalLM", f"{modules[1].path}/config.json has no true_token_id and false_token_id")
        return yes, no
    # CrossEncoder's choice for a causal model without modules.json.
    vocabulary = tokenizer.get_vocab()
    if "yes" not in vocabulary or "no" not in vocabulary:
        raise _lacking("Qwen3ForCausalLM", "its tokenizer has no tokens yes and no, and there is no modules.json")
    return vocabulary["yes"], vocabulary["no"]


def _are_tokens(size: int, *numbers: int | None) -> bool:
    return all(number is None or 0 <= number < size for number in numbers)


def _lacking(architecture: str, what: str) -> ConfigurationFailure:
    return ConfigurationFailure(
        f"spec.model.uri: the files of the model ({architecture}) do not say how to rerank with it: {what}; use a "
        "revision that was saved as a CrossEncoder of sentence-transformers 5.4 or later (modules.json, its "
        "LogitScore/config.json and a chat template with the roles query and document)"
    )
