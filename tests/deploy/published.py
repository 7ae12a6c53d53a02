"""A published CustomResourceDefinition as a JSON schema that refuses unknown names, as `--validate=strict` does."""

from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator


def validator_of(definition: Path, version: str) -> Draft202012Validator:
    """Return the schema of the resource's `version`. Raise ValueError if the definition does not have it."""
    [schema] = [
        found["schema"]["openAPIV3Schema"]
        for found in yaml.safe_load(definition.read_text())["spec"]["versions"]
        if found["name"] == version
    ]
    strict = _strict(schema)
    # The definition leaves Kubernetes' own fields open.
    strict["properties"]["metadata"] = {"type": "object"}
    return Draft202012Validator(strict)


def _strict(schema: Any) -> Any:
    """Return the schema in the terms of JSON Schema instead of OpenAPI's and Kubernetes'."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _strict(each) for name, each in schema.items()}
    if schema.get("x-kubernetes-int-or-string") is True:
        found = {"type": ["integer", "string"]}
    if schema.get("nullable") is True:
        found["type"] = [schema["type"], "null"]
    if "properties" in schema and schema.get("x-kubernetes-preserve-unknown-fields") is not True:
        found.setdefault("additionalProperties", False)
    return found
