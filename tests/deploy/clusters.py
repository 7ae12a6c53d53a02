"""The resources that the replicas of deploy/serve_config.yaml need, and those that groups of nodes have."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from ray.serve.schema import DeploymentSchema, ServeDeploySchema

from deploy.serve_config import SERVE_CONFIG
from serve_app.app import build
from serve_app.settings import AppSettings


@dataclass(frozen=True)
class Group:
    """Nodes of one kind: their number, and the resources of each."""

    least: int
    most: int
    cpus: int
    gpus: int
    labels: Mapping[str, str]


def deployments() -> dict[str, DeploymentSchema]:
    [application] = ServeDeploySchema.model_validate(yaml.safe_load(SERVE_CONFIG.read_text())).applications
    return {deployment.name: deployment for deployment in application.deployments}


def assert_room(groups: list[Group]) -> None:
    """Check that one replica a node fits, for any number that a deployment may have, a rolling update included."""
    for deployment in deployments().values():
        actor, scaling = deployment.ray_actor_options, deployment.autoscaling_config
        [group] = [group for group in groups if actor.label_selector.items() <= group.labels.items()]
        assert group.cpus >= actor.num_cpus, deployment.name
        assert group.gpus == (actor.num_gpus if isinstance(actor.num_gpus, float) else 0), deployment.name
        assert group.least >= scaling["min_replicas"], deployment.name
        surge = math.ceil(scaling["max_replicas"] * deployment.max_surge_percent / 100)
        assert group.most >= scaling["max_replicas"] + surge, deployment.name


def keys_file() -> Path | None:
    """Return the path of the file of keys, which each node with an ingress replica needs."""
    [application] = ServeDeploySchema.model_validate(yaml.safe_load(SERVE_CONFIG.read_text())).applications
    return AppSettings.model_validate(application.args).auth.keys_file


def graceful_shutdown_s() -> float:
    """Return the longest time that a replica with the default settings may take to finish its edits."""
    ingress = build(AppSettings())._bound_deployment
    others = [argument._bound_deployment for argument in ingress.init_args if hasattr(argument, "_bound_deployment")]
    assert {other.name for other in others} == {"ImageEditor"}
    return max(float(each._deployment_config.graceful_shutdown_timeout_s) for each in [ingress, *others])
