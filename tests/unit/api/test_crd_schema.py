"""The CRDs as documents: every field described, every size bounded, and the code's own types say the same."""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
import yaml
from rerank_api import names
from rerank_api.reranker import Model, RerankerSpec, RerankerStatus
from rerank_api.units import parse_duration
from rerank_api.warm_pool import WarmPoolSpec, WarmPoolStatus
from rerank_operator.scaling.policy import Policy

ROOT = Path(__file__).resolve().parents[3]
Schema = dict[str, Any]

CRDS: dict[str, Schema] = {
    path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))
}
VERSIONS: dict[str, Schema] = {plural: crd["spec"]["versions"][0] for plural, crd in CRDS.items()}
SCHEMAS: dict[str, Schema] = {plural: version["schema"]["openAPIV3Schema"] for plural, version in VERSIONS.items()}


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
FIELDS = [
    pytest.param(path, field, id=f"{plural}-{path}")
    for plural, schema in SCHEMAS.items()
    for path, field in fields("", schema)
    if not path.startswith("metadata")
]
RULES = [
    pytest.param(rule, id=f"{plural}-{path or 'root'}")
    for plural, schema in SCHEMAS.items()
    for path, field in [("", schema), *fields("", schema)]
    for rule in field.get("x-kubernetes-validations", [])
]


@pytest.mark.parametrize(("path", "field"), FIELDS)
def test_is_described(path: str, field: Schema) -> None:
    description = field["description"]
    assert len(description) >= 24
    assert description[-1] in ".}" or "Example: " in description
    if path.startswith("spec.") and "default" in field and field["default"] != {}:
        assert "Default: " in description, "a default is explained in words"


@pytest.mark.parametrize(("path", "field"), FIELDS)
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
                assert ".podTemplate.spec" in path
                assert "maxProperties" in field
        case "boolean":
            pass
        case other:
            pytest.fail(f"unexpected type {other}")


@pytest.mark.parametrize("rule", RULES)
def test_rule_says_what_to_do(rule: dict[str, str]) -> None:
    assert len(rule["message"]) >= 30
    assert "\n" not in rule["message"]


@pytest.mark.parametrize(
    ("plural", "path", "struct"),
    [
        (names.PLURAL, "spec", RerankerSpec),
        (names.PLURAL, "status", RerankerStatus),
        (names.WARM_POOL_PLURAL, "spec", WarmPoolSpec),
        (names.WARM_POOL_PLURAL, "status", WarmPoolStatus),
    ],
)
def test_code_and_schema_agree(plural: str, path: str, struct: type[msgspec.Struct]) -> None:
    agree(path, SCHEMAS[plural]["properties"][path], struct)


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
                assert there.get("default") == (list(default) if isinstance(default, tuple) else default), here
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


@pytest.mark.parametrize(
    ("plural", "kind"), [(names.PLURAL, names.KIND), (names.WARM_POOL_PLURAL, names.WARM_POOL_KIND)]
)
def test_names_agree(plural: str, kind: str) -> None:
    spec = CRDS[plural]["spec"]
    assert CRDS[plural]["metadata"]["name"] == f"{plural}.{names.GROUP}"
    assert (spec["group"], spec["names"]["kind"], spec["names"]["plural"]) == (names.GROUP, kind, plural)
    assert VERSIONS[plural]["name"] == names.VERSION


def field_of(plural: str, *path: str) -> Schema:
    schema = SCHEMAS[plural]
    for name in path:
        schema = schema["properties"][name]
    return schema


def without_words(schema: Any) -> Any:
    """The schema without its texts."""
    if isinstance(schema, dict):
        return {key: without_words(value) for key, value in schema.items() if key not in {"description", "message"}}
    return [without_words(item) for item in schema] if isinstance(schema, list) else schema


@pytest.mark.parametrize("name", ["resources", "podTemplate"])
def test_pods_of_both_kinds_are_described_alike(name: str) -> None:
    """Two files cannot share a part: the one that is changed must not leave the other behind."""
    reranker, pool = field_of(names.PLURAL, "spec", "runtime", name), field_of(names.WARM_POOL_PLURAL, "spec", name)
    assert without_words(pool) == without_words(reranker)


def test_a_policy_means_the_same_in_the_schema_and_in_the_simulator() -> None:
    """The simulator reads manifests that no API server has filled in."""
    defaults, policy = Policy(), RerankerSpec(Model("file:///m"))
    scaling, latency = policy.scaling, policy.slo.latency
    assert (defaults.min_replicas, defaults.max_replicas) == (scaling.min_replicas, scaling.max_replicas)
    assert defaults.target_queue_depth == scaling.target_queue_depth
    assert defaults.target_queue_time == parse_duration(scaling.target_queue_time)
    assert defaults.idle_timeout == parse_duration(scaling.idle_timeout)
    assert (defaults.mode, defaults.warm_pool) == (scaling.mode, scaling.warm_pool)
    assert defaults.latency_threshold == parse_duration(latency.threshold)
    assert defaults.latency_quantile == latency.quantile
