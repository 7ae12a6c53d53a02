"""deploy/kuberay against KubeRay's published schema, which no package carries, if KUBERAY_CRD names its file."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.serve_config import RAY_SERVICE
from tests.deploy.published import validator_of

DEFINITION = """
spec:
  versions:
    - name: v1
      schema:
        openAPIV3Schema:
          type: object
          properties:
            metadata: {type: object}
            spec:
              type: object
              properties:
                port: {x-kubernetes-int-or-string: true, anyOf: [{type: integer}, {type: string}], pattern: x}
                seconds: {type: integer, nullable: true}
                labels: {type: object, additionalProperties: {type: string}}
                open: {type: object, properties: {a: {type: string}}, x-kubernetes-preserve-unknown-fields: true}
                pods: {type: array, items: {type: object, properties: {name: {type: string}}, required: [name]}}
"""


@pytest.fixture
def definition(tmp_path: Path) -> Path:
    file = tmp_path / "crd.yaml"
    file.write_text(DEFINITION)
    return file


def problems(definition: Path, resource: Any) -> list[str]:
    found = validator_of(definition, "v1").iter_errors(resource)
    return [f"{'.'.join(str(part) for part in error.absolute_path)}: {error.message}" for error in found]


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"port": 1},
        {"port": "http"},
        {"seconds": None},
        {"labels": {"any": "name"}},
        {"open": {"b": 1}},
        {"pods": [{"name": "a"}]},
    ],
)
def test_what_the_schema_allows_is_allowed(definition: Path, spec: dict[str, Any]) -> None:
    assert problems(definition, {"metadata": {"name": "x"}, "spec": spec}) == []


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ({"prot": 1}, "spec"),
        ({"port": 1.5}, "spec.port"),
        ({"seconds": "1"}, "spec.seconds"),
        ({"labels": {"any": 1}}, "spec.labels.any"),
        ({"pods": [{"name": "a", "image": "b"}]}, "spec.pods.0"),
        ({"pods": [{}]}, "spec.pods.0"),
    ],
)
def test_what_it_does_not_know_is_refused(definition: Path, spec: dict[str, Any], where: str) -> None:
    [problem] = problems(definition, {"spec": spec})
    assert problem.startswith(f"{where}: ")


@pytest.mark.skipif(
    "KUBERAY_CRD" not in os.environ, reason="KUBERAY_CRD: the file of the schema (docs/operate/deploy.md)"
)
def test_kuberays_published_schema_takes_the_ray_service() -> None:
    definition = Path(os.environ["KUBERAY_CRD"])
    resource = yaml.safe_load(RAY_SERVICE.read_text())
    assert problems(definition, resource) == []
    resource["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["minReplica"] = 1
    assert len(problems(definition, resource)) == 1
