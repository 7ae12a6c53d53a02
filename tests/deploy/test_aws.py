"""deploy/aws/cluster.yaml against the schema of Ray's cluster launcher, and rules beyond it."""

from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from serve_app.deployments.environment import VARIABLES
from tests.deploy.clusters import Group, assert_room, keys_file
from tests.paths import ROOT

CLUSTER = ROOT / "deploy" / "aws" / "cluster.yaml"


@pytest.fixture
def cluster() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(CLUSTER.read_text())
    return content


def test_it_fits_the_launchers_schema(cluster: dict[str, Any]) -> None:
    # As `ray up` does, on top of the defaults for AWS.
    validate_config(prepare_config(cluster))


def test_the_schema_refuses_what_it_does_not_know(cluster: dict[str, Any]) -> None:
    cluster["available_node_types"]["gpu"]["max_worker"] = 1
    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(prepare_config(cluster))


def test_the_nodes_have_room_for_every_replica(cluster: dict[str, Any]) -> None:
    types = dict(cluster["available_node_types"])
    head = types.pop(cluster["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    groups = [
        Group(
            kind["min_workers"],
            kind["max_workers"],
            kind["resources"]["CPU"],
            kind["resources"].get("GPU", 0),
            kind["labels"],
        )
        for kind in types.values()
    ]
    assert_room(groups)
    assert cluster["max_workers"] >= sum(group.most for group in groups)


def test_every_node_gets_the_file_of_keys(cluster: dict[str, Any]) -> None:
    assert "/home/ubuntu/keys" in cluster["file_mounts"]
    assert f"sudo install -D -m 644 ~/keys {keys_file()}" in cluster["setup_commands"]


def test_ray_asks_for_a_token_that_every_node_has(cluster: dict[str, Any]) -> None:
    # Where Ray looks for it if no variable names a place.
    assert "/home/ubuntu/.ray/auth_token" in cluster["file_mounts"]
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = cluster[name][-1]
        assert start.index("set -a;") < start.index("RAY_AUTH_MODE=token;") < start.index("ray start")


@pytest.mark.parametrize("variable", VARIABLES)
def test_ray_has_its_environment_on_every_node(cluster: dict[str, Any], variable: str) -> None:
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = cluster[name][-1]
        assert start.index("set -a;") < start.index(f"{variable}={VARIABLES[variable]};") < start.index("ray start")
