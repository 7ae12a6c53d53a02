"""deploy/kuberay against Kubernetes' schema, KubeRay's names, and the application that it is to run."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from deploy.serve_config import RAY_SERVICE
from serve_app.settings import AppSettings
from tests.deploy.clusters import Group, assert_room, graceful_shutdown_s, keys_file
from tests.deploy.rayservice import RayCluster, RayService, Spec
from tests.paths import ROOT

KUBERNETES = "1.37"
MODEL_CACHE = RAY_SERVICE.parent / "model-cache.yaml"
STORE = RAY_SERVICE.parent / "store.yaml"
RESULTS = RAY_SERVICE.parent / "results.yaml"


@pytest.fixture
def spec() -> Spec:
    return RayService.model_validate(yaml.safe_load(RAY_SERVICE.read_text())).spec


@pytest.fixture
def cluster(spec: Spec) -> RayCluster:
    return spec.ray_cluster_config


def templates(cluster: RayCluster) -> list[dict[str, Any]]:
    return [cluster.head_group_spec.template, *(group.template for group in cluster.worker_group_specs)]


def container(template: dict[str, Any]) -> dict[str, Any]:
    """Return the only container; KubeRay takes the first for Ray's."""
    [found] = template["spec"]["containers"]
    result: dict[str, Any] = found
    return result


def assert_valid(resource: dict[str, Any]) -> None:
    kubernetes_validate.validate(resource, KUBERNETES, strict=True)


def test_the_pods_and_the_volume_fit_kubernetes_schema(cluster: RayCluster) -> None:
    for template in templates(cluster):
        assert_valid({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template})
    for path in (MODEL_CACHE, STORE, RESULTS):
        for resource in yaml.safe_load_all(path.read_text()):
            assert_valid(resource)


def test_an_unknown_name_in_a_pod_is_refused(cluster: RayCluster) -> None:
    template = cluster.head_group_spec.template
    container(template)["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        assert_valid({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template})


def test_the_nodes_have_room_for_every_replica(cluster: RayCluster) -> None:
    groups = []
    for group in cluster.worker_group_specs:
        resources = container(group.template)["resources"]
        gpus = int(resources["limits"].get("nvidia.com/gpu", 0))
        cpus = int(resources["requests"]["cpu"])
        groups.append(Group(group.min_replicas, group.max_replicas, cpus, gpus, group.labels))
    assert_room(groups)
    assert cluster.head_group_spec.ray_start_params["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in container(cluster.head_group_spec.template)["resources"]["limits"]


def test_an_upgrade_cuts_no_edit(spec: Spec) -> None:
    assert spec.upgrade_strategy.type == "NewCluster"
    assert spec.ray_cluster_deletion_delay_seconds > graceful_shutdown_s()


def test_rays_version_is_the_images(cluster: RayCluster) -> None:
    assert cluster.ray_version == version("ray")
    assert len({container(template)["image"] for template in templates(cluster)}) == 1


def test_the_ingress_gets_the_keys_and_cannot_start_without_them(cluster: RayCluster) -> None:
    [ingress] = [group for group in cluster.worker_group_specs if group.group_name == "ingress"]
    volume, _ = ingress.template["spec"]["volumes"]
    mount, _ = container(ingress.template)["volumeMounts"]
    assert volume["name"] == mount["name"]
    # Of the folder: a file that is mounted alone is not replaced when the secret changes.
    assert keys_file() == Path(mount["mountPath"]) / "keys"
    assert "subPath" not in mount
    assert not volume["secret"].get("optional", False)


def test_ray_asks_for_its_token(cluster: RayCluster) -> None:
    assert cluster.auth_options.mode == "token"


def test_the_model_is_loaded_from_the_volume(cluster: RayCluster) -> None:
    [gpu] = [group for group in cluster.worker_group_specs if group.group_name == "gpu"]
    claim = yaml.safe_load(MODEL_CACHE.read_text())
    [volume] = gpu.template["spec"]["volumes"]
    [mount] = container(gpu.template)["volumeMounts"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert volume["name"] == mount["name"]
    assert f"HF_HOME={mount['mountPath']}/" in (ROOT / "deploy" / "Dockerfile").read_text()
    # A group may have many nodes.
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_store_is_where_the_settings_say_and_has_its_password_from_the_secret(spec: Spec) -> None:
    [application] = ServeDeploySchema.model_validate(yaml.safe_load(spec.serve_config_v2)).applications
    settings = AppSettings.model_validate(application.args)
    service, stateful_set = yaml.safe_load_all(STORE.read_text())
    [port] = service["spec"]["ports"]
    assert settings.store.url == f"redis://{service['metadata']['name']}:{port['port']}/0"
    pod = stateful_set["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    password = {"secretKeyRef": {"name": "image-edits-store", "key": "password"}}
    assert {"name": "PASSWORD", "valueFrom": password} in container(pod)["env"]
    claim = yaml.safe_load(RESULTS.read_text())
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    cluster = spec.ray_cluster_config
    [ingress] = [group for group in cluster.worker_group_specs if group.group_name == "ingress"]
    # Of these pods one starts the application and tries the store, and the others use it.
    for template in (cluster.head_group_spec.template, ingress.template):
        assert {"name": settings.store.password_env, "valueFrom": password} in container(template)["env"]
        [mount] = [each for each in container(template)["volumeMounts"] if each["name"] == "results"]
        [volume] = [each for each in template["spec"]["volumes"] if each["name"] == "results"]
        assert settings.results.store == f"file://{mount['mountPath']}"
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_no_pod_is_more_than_it_must_be(cluster: RayCluster) -> None:
    for template in templates(cluster):
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert container(template)["securityContext"]["allowPrivilegeEscalation"] is False
        assert {"livenessProbe", "readinessProbe"} <= container(template).keys()
