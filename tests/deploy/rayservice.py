"""The part of KubeRay's `ray.io/v1` RayService that deploy/kuberay uses, strictly: an unknown name is refused.

The names and types are those of KubeRay 1.7.0. Its published schema is in no package; test_published.py asks it where
it is at hand. Pod templates stay mappings: Kubernetes' own schema checks them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

# A label's value, which a group's name becomes.
Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")]
Labels = dict[str, str]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class AuthOptions(Strict):
    mode: Literal["disabled", "token"]


class AutoscalerOptions(Strict):
    version: Literal["v1", "v2"]
    idle_timeout_seconds: int = Field(ge=0)
    security_context: dict[str, Any]
    resources: dict[Literal["limits", "requests"], dict[str, str]]


class HeadGroup(Strict):
    ray_start_params: dict[str, str]
    template: dict[str, Any]


class WorkerGroup(Strict):
    group_name: Name
    replicas: int = Field(ge=0)
    min_replicas: int = Field(ge=0)
    max_replicas: int = Field(ge=1)
    labels: Labels
    ray_start_params: dict[str, str]
    template: dict[str, Any]

    @model_validator(mode="after")
    def _check_bounds(self) -> "WorkerGroup":
        assert self.min_replicas <= self.replicas <= self.max_replicas
        return self


class RayCluster(Strict):
    ray_version: str
    auth_options: AuthOptions
    enable_in_tree_autoscaling: bool
    autoscaler_options: AutoscalerOptions
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup] = Field(min_length=1)


class UpgradeStrategy(Strict):
    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]


class Spec(Strict):
    upgrade_strategy: UpgradeStrategy
    ray_cluster_deletion_delay_seconds: int = Field(ge=0)
    exclude_head_pod_from_serve_svc: bool
    serve_config_v2: str
    ray_cluster_config: RayCluster


class Metadata(Strict):
    # KubeRay appends to it, and refuses longer ones.
    name: Annotated[Name, Field(max_length=47)]


class RayService(Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: Spec
