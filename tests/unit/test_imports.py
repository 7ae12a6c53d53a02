"""The modules that a fresh interpreter loads for each package.

pyproject.toml has the contracts of import-linter: which file may import which.
"""

import subprocess
import sys

import pytest

from tests.paths import ROOT

PACKAGE = ROOT / "serve_app"

# Through what they import: Ray Serve brings Starlette; the application is built, and its ingress runs, without torch.
ALLOWED: dict[str, set[str]] = {
    "client": set(),
    "decoding": set(),
    "engine": set(),
    "forms": {"starlette"},
    "images": set(),
    "outbound": set(),
    "responses": {"starlette"},
    "store": set(),
    "jobs": {"starlette"},
    "links": {"starlette"},
    "idempotency": {"starlette"},
    "api": {"starlette"},
    "deployments": {"starlette", "ray"},
    "cli": {"starlette", "ray"},
}
WATCHED = ("torch", "diffusers", "transformers", "starlette", "ray")


def test_every_package_but_the_models_is_listed():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == {*ALLOWED, "models"}


# Packages that need the same are loaded together, since each interpreter takes a good part of a second.
@pytest.mark.parametrize("allowed", [set(), {"starlette"}, {"starlette", "ray"}], ids=["none", "starlette", "ray"])
def test_a_fresh_interpreter_loads_only_what_the_packages_need(allowed: set[str]):
    packages = [package for package, names in ALLOWED.items() if names == allowed]
    assert packages
    modules = [f"serve_app.{package}.{path.stem}" for package in packages for path in (PACKAGE / package).glob("*.py")]
    script = f"import sys, {', '.join(modules)}; print(*[m for m in {WATCHED} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) <= allowed
