"""Writes the API reference, docs/reference/reranker.md and warmpool.md, from crds/: one table for each object.

The CRDs are the only source: nothing about a field is written here. Run by `make generate`; a unit test holds the two
together.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    ROOT / "crds" / "rerankers.yaml": ROOT / "docs" / "reference" / "reranker.md",
    ROOT / "crds" / "warmpools.yaml": ROOT / "docs" / "reference" / "warmpool.md",
}
"""Each CRD and the page made of it."""

Schema = dict[str, Any]


def main() -> None:
    for crd, page in PAGES.items():
        page.write_text(render(yaml.safe_load(crd.read_text())))


def render(crd: Schema) -> str:
    """The whole page, as Markdown."""
    spec = crd["spec"]
    version = spec["versions"][0]
    source = f"crds/{spec['names']['plural']}.yaml"
    root = version["schema"]["openAPIV3Schema"]
    lines = [
        f"# {spec['names']['kind']} ({spec['group']}/{version['name']})",
        "",
        f"<!-- Written by docs/reference/generate.py: change {source}, then `make generate`. -->",
        "",
        root["description"],
        "",
        "Fields that are not listed here are refused by `kubectl create` and `kubectl apply`; `kubectl patch` drops",
        "them with a warning. What the API server says to mistakes:",
        "[refused-manifests.md](refused-manifests.md). Examples: [docs/examples](../examples).",
        f"The same text in a terminal: `kubectl explain {spec['names']['singular']}.spec --recursive`.",
        "",
        *_rules(root, "Rules of the object"),
        *_columns(version),
    ]
    for path, schema in _objects("", root):
        if path:
            lines += _section(path, schema)
    return "\n".join(lines).rstrip() + "\n"


def _objects(path: str, schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Every object with fields of its own, the outer before the inner."""
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        inner = field.get("items", field)
        if name != "metadata" or path:
            suffix = "[]" if "items" in field else ""
            if inner.get("properties"):
                yield from _objects(f"{path}.{name}{suffix}".removeprefix("."), inner)


def _section(path: str, schema: Schema) -> list[str]:
    lines = [f"## {path}", "", schema["description"].replace("<", "&lt;"), ""]
    lines += ["| field | type | default | allowed | meaning |", "| --- | --- | --- | --- | --- |"]
    for name, field in schema["properties"].items():
        required = name in schema.get("required", [])
        cells = [f"`{name}`", _type(field), _default(field, required), _allowed(field), field["description"]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |")
    return [*lines, "", *_rules(schema, "Rules")]


def _type(field: Schema) -> str:
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "items" in field:
        return f"list of {_type(field['items'])}"
    if "additionalProperties" in field:
        return f"map to {_type(field['additionalProperties'])}"
    return field["type"]


def _default(field: Schema, required: bool) -> str:
    if required:
        return "required"
    if field.get("default", {}) != {}:
        value = field["default"]
        return f"`{str(value).lower() if isinstance(value, bool) else value}`"
    return ""


def _allowed(field: Schema) -> str:
    """Bounds in words, those of a list's items and a map's values included."""
    bounds = []
    if "enum" in field:
        bounds.append(", ".join(f"`{value}`" for value in field["enum"]))
    if "minimum" in field and "maximum" in field:
        bounds.append(f"{_number(field['minimum'])} to {_number(field['maximum'])}")
    elif "minimum" in field:
        bounds.append(f"at least {_number(field['minimum'])}")
    if "maxLength" in field:
        bounds.append(f"at most {_number(field['maxLength'])} characters")
    if "pattern" in field:
        bounds.append(f"`{field['pattern']}`")
    if "maxItems" in field:
        fewest = field.get("minItems", 0)
        bounds.append(f"{fewest} to {field['maxItems']} items" if fewest else f"at most {field['maxItems']} items")
    if "maxProperties" in field and "properties" not in field:
        bounds.append(f"at most {field['maxProperties']} entries")
    inner = field.get("items") or field.get("additionalProperties")
    if inner and not inner.get("properties") and (words := _allowed(inner)):
        bounds.append(f"each: {words}")
    return "; ".join(bounds)


def _number(value: float) -> str:
    return f"{value:,}"


def _rules(schema: Schema, title: str) -> list[str]:
    """The messages of the CEL rules of an object and of its fields that have no section of their own."""
    rules = [rule["message"] for rule in schema.get("x-kubernetes-validations", [])]
    for name, field in schema.get("properties", {}).items():
        if "properties" in field:
            continue
        inner = field.get("additionalProperties", {})
        for rule in [*field.get("x-kubernetes-validations", []), *inner.get("x-kubernetes-validations", [])]:
            rules.append(f"`{name}`: {rule['message']}")
    if not rules:
        return []
    return [f"{title}, in the words of the API server:", "", *(f"- {rule}" for rule in rules), ""]


def _columns(version: Schema) -> list[str]:
    columns = [c["name"] + (" (`-o wide`)" if c.get("priority") else "") for c in version["additionalPrinterColumns"]]
    scale = {key: path.removeprefix(".") for key, path in version["subresources"]["scale"].items()}
    return [
        f"`kubectl get` shows: {', '.join(columns)}.",
        f"`kubectl scale` and autoscalers write `{scale['specReplicasPath']}` and read",
        f"`{scale['statusReplicasPath']}`; pods are found by `{scale['labelSelectorPath']}`.",
        "",
    ]


if __name__ == "__main__":
    main()
