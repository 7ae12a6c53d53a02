"""The serve configuration of a cluster with GPUs: it follows serve_config.yaml, and Ray and our settings accept it."""

from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from deploy.serve_config import KUBERAY_DIFFERENCES, RAY_SERVICE, SERVE_CONFIG, merged, ray_service, serve_config
from serve_app.app import APP_NAME, build
from serve_app.settings import AppSettings


def test_both_copies_are_what_serve_config_and_the_differences_make() -> None:
    assert SERVE_CONFIG.read_text() == serve_config(), "run `make deploy-config`"
    assert RAY_SERVICE.read_text() == ray_service(), "run `make deploy-config`"
    embedded = yaml.safe_load(yaml.safe_load(RAY_SERVICE.read_text())["spec"]["serveConfigV2"])
    assert embedded == yaml.safe_load(serve_config(KUBERAY_DIFFERENCES)) != yaml.safe_load(SERVE_CONFIG.read_text())


def test_it_fits_rays_schema_and_our_settings() -> None:
    [application] = ServeDeploySchema.model_validate(yaml.safe_load(SERVE_CONFIG.read_text())).applications
    assert application.name == APP_NAME
    settings = AppSettings.model_validate(application.args)
    assert settings.model.device == "cuda"
    # Ray refuses a deployment that the application lacks only when it runs.
    assert {deployment.name for deployment in application.deployments} == {"EditIngress", "ImageEditor"}


def test_without_cores_for_two_there_is_one_ingress() -> None:
    """No Ray runs here; tests/cluster/test_ready.py has one with cores."""
    assert build(AppSettings())._bound_deployment.num_replicas == 1


@pytest.mark.parametrize(
    ("base", "difference", "result"),
    [
        ({"a": 1, "b": {"c": 1, "d": 2}}, {"b": {"c": 3}}, {"a": 1, "b": {"c": 3, "d": 2}}),
        ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
        ({"a": 1}, {"b": {"c": None, "d": 1}}, {"a": 1, "b": {"d": 1}}),
        (
            [{"name": "x", "v": 1}, {"name": "y", "v": 1}],
            [{"name": "y", "v": 2}],
            [{"name": "x", "v": 1}, {"name": "y", "v": 2}],
        ),
    ],
)
def test_differences_are_laid_over(base: Any, difference: Any, result: Any) -> None:
    assert merged(base, difference) == result


def test_a_difference_of_something_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="EditIngres"):
        merged([{"name": "EditIngress"}], [{"name": "EditIngres"}])
