"""The CRD as a document: every field described, every size bounded, and the code's own types say the same."""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
import yaml
from rerank_api import names
from rerank_api.reranker import RerankerSpec, RerankerStatus

ROOT = Path(__file__).resolve().parents[3]
CRD = yaml.safe_load((ROOT / "crds" / "rerankers.yaml").read_text())
VERSION = CRD["spec"]["versions"][0]
SCHEMA: dict[str, Any] = VERSION["schema"]["openAPIV3Schema"]

Schema = dict[str, Any]


def fields(path: str, schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Every schema below ``schema`` with its path: properties, items and values of maps."""
    for name, field in schema.get("properties", {}).items():
        inner = f"{path}.{name}".removeprefix(".")
        yield inner, field
        yield from fields(inner, field)
    for key, suffix in (("items", "[]"), ("additionalProperties", "{}")):
        if key in schema:
            yield path + suffix, schema[key]
            yield from fields(path + suffix, schema[key])


# The API server allows neither a description of metadata nor more than name and generateName in it.
FIELDS = [(path, field) for path, field in fields("", SCHEMA) if not path.startswith("metadata")]
RULES = [
    (path or "root", rule)
    for path, field in [("", SCHEMA), *FIELDS]
    for rule in field.get("x-kubernetes-validations", [])
]


def by_path(path_and_field: Any) -> str:
    return path_and_field if isinstance(path_and_field, str) else ""


@pytest.mark.parametrize(("path", "field"), FIELDS, ids=by_path)
def test_is_described(path: str, field: Schema) -> None:
    description = field["description"]
    assert len(description) >= 24
    assert description[-1] in ".}" or "Example: " in description
    if path.startswith("spec.") and "default" in field and field["default"] != {}:
        assert "Default: " in description, "a default is explained in words"


@pytest.mark.parametrize(("path", "field"), FIELDS, ids=by_path)
def test_is_bounded(path: str, field: Schema) -> None:
    if field.get("x-kubernetes-int-or-string"):
        assert "maxLength" in field
        return
    match field["type"]:
        case "string":
            assert "enum" in field or "maxLength" in field
        case "array":
            assert "maxItems" in field
        case "integer" | "number":
            assert "minimum" in field
            assert "maximum" in field or path.startswith("status.")
        case "object":
            assert "properties" in field or "maxProperties" in field
            if field.get("x-kubernetes-preserve-unknown-fields"):
                assert path.startswith("spec.runtime.podTemplate.spec")
                assert "maxProperties" in field
        case "boolean":
            pass
        case other:
            pytest.fail(f"unexpected type {other}")


@pytest.mark.parametrize(("path", "rule"), RULES, ids=by_path)
def test_rule_says_what_to_do(path: str, rule: dict[str, str]) -> None:
    assert len(rule["message"]) >= 30
    assert "\n" not in rule["message"]


@pytest.mark.parametrize(("path", "struct"), [("spec", RerankerSpec), ("status", RerankerStatus)])
def test_code_and_schema_agree(path: str, struct: type[msgspec.Struct]) -> None:
    agree(path, SCHEMA["properties"][path], struct)


def agree(path: str, schema: Schema, struct: type[msgspec.Struct]) -> None:
    """Same fields, same defaults, same choices, same required fields."""
    own = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    assert own.keys() == schema["properties"].keys(), path
    hints = get_type_hints(struct)
    for name, field in own.items():
        here, there = f"{path}.{name}", schema["properties"][name]
        hint = without_none(hints[field.name])
        if path.startswith("spec"):
            assert (name in schema.get("required", [])) == field.required, here
            default = None if field.default is msgspec.NODEFAULT else field.default
            if isinstance(default, msgspec.Struct):
                assert there["default"] == {}, here
            else:
                assert there.get("default") == default, here
        if get_origin(hint) is Literal:
            assert there["enum"] == list(get_args(hint)), here
        inner = get_args(hint)[0] if get_origin(hint) is list else hint
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            agree(here, there.get("items", there), inner)


def without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else hint
    return hint


def test_names_agree() -> None:
    spec = CRD["spec"]
    assert CRD["metadata"]["name"] == f"{names.PLURAL}.{names.GROUP}"
    assert (spec["group"], spec["names"]["kind"], spec["names"]["plural"]) == (names.GROUP, names.KIND, names.PLURAL)
    assert VERSION["name"] == names.VERSION
