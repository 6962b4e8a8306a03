"""Manifests read and checked as strictly as an API server would, without one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

BASE = Path(__file__).parents[2] / "k8s" / "base"
RAY_SERVICE_CRD = Path(__file__).parent / "crds" / "ray.io_rayservices.yaml"
KUBERNETES = "1.34"

Object = dict[str, Any]


class _NoDuplicates(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, which YAML's loaders let pass."""


def _mapping(loader: _NoDuplicates, node: yaml.MappingNode) -> Object:
    loader.flatten_mapping(node)
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    doubled = {key for key in keys if keys.count(key) > 1}
    if doubled:
        raise yaml.YAMLError(f"{node.start_mark}: duplicate keys {doubled}")
    return loader.construct_mapping(node, deep=True)


_NoDuplicates.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def kustomization() -> Object:
    return dict(yaml.load((BASE / "kustomization.yaml").read_text(), _NoDuplicates))


def objects() -> list[Object]:
    """Every object that the base is made of."""
    found = []
    for name in kustomization()["resources"]:
        found += [doc for doc in yaml.load_all((BASE / name).read_text(), _NoDuplicates) if doc]
    return found


def ray_service() -> Object:
    return next(o for o in objects() if o["kind"] == "RayService")


def problems(manifest: Object) -> list[str]:
    """What the API server would say of it; empty when it takes it."""
    if manifest["kind"] == "RayService":
        found = [
            f"{error.json_path}: {error.message}" for error in _ray_service_schema().iter_errors(manifest)
        ]
        return found + serve_problems(manifest["spec"]["serveConfigV2"])
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as exc:
        return [str(exc.message)]
    return []


def serve_problems(text: str) -> list[str]:
    """What Ray would say of a Serve config; and unknown keys, which it drops in silence."""
    values = yaml.load(text, _NoDuplicates)
    try:
        ServeDeploySchema.model_validate(values)
    except ValueError as exc:
        return [str(exc)]
    unknown = list(_unknown_keys(ServeDeploySchema, values, ""))
    for i, application in enumerate(values["applications"]):
        model = ServeDeploySchema.model_fields["applications"].annotation.__args__[0]
        unknown += _unknown_keys(model, application, f"applications[{i}].")
    return unknown


def _unknown_keys(model: type[BaseModel], values: Object, path: str) -> Iterator[str]:
    yield from (f"{path}{key}: unknown" for key in values if key not in model.model_fields)


@cache
def _ray_service_schema() -> Draft202012Validator:
    crd = yaml.load(RAY_SERVICE_CRD.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
    assert version["served"]
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    return Draft202012Validator(schema)


def _strict(schema: Object) -> Object:
    """A structural schema as JSON Schema that refuses unknown fields.

    It recurses only where a value is a schema: a property may itself be named `properties`.
    """
    kept = {
        k: v for k, v in schema.items() if k in ("type", "enum", "pattern", "required", "minimum", "maximum")
    }
    for key in ("properties", "patternProperties"):
        if key in schema:
            kept[key] = {name: _strict(value) for name, value in schema[key].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            kept[key] = _strict(schema[key])
    if schema.get("x-kubernetes-int-or-string"):
        kept.pop("type", None)
        kept["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    free = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and not free:
        kept["additionalProperties"] = False
    if "required" in kept:  # the server fills defaults in before it validates
        properties = schema.get("properties", {})
        kept["required"] = [name for name in kept["required"] if "default" not in properties.get(name, {})]
    return kept
