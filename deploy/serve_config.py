"""The serve configuration of a cluster with GPUs: ../serve_config.yaml with the differences of differences.yaml.

`python -m deploy.serve_config` writes it to deploy/serve_config.yaml and into deploy/kuberay/rayservice.yaml; a test
compares both with what it would write.
"""

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
BASE = HERE.parent / "serve_config.yaml"
DIFFERENCES = HERE / "differences.yaml"
SERVE_CONFIG = HERE / "serve_config.yaml"
RAY_SERVICE = HERE / "kuberay" / "rayservice.yaml"

_BEGIN, _END = "  serveConfigV2: |\n", "  # end of serveConfigV2\n"


def merged(base: Any, difference: Any) -> Any:
    """`base` with `difference` laid over it: mappings merge, lists of named mappings merge by name, null removes.

    Raises ValueError where a name in a list of the difference is not in the base.
    """
    if isinstance(base, dict | None) and isinstance(difference, dict):
        base = base or {}
        changed = {key: merged(base.get(key), value) for key, value in difference.items() if value is not None}
        return {key: value for key, value in base.items() if key not in difference or key in changed} | changed
    if isinstance(base, list) and isinstance(difference, list):
        changes = {item["name"]: item for item in difference}
        if unknown := changes.keys() - {item["name"] for item in base}:
            raise ValueError(f"differences.yaml names what serve_config.yaml lacks: {', '.join(sorted(unknown))}")
        return [merged(item, changes.get(item["name"], {})) for item in base]
    return difference


def serve_config() -> str:
    content = merged(yaml.safe_load(BASE.read_text()), yaml.safe_load(DIFFERENCES.read_text()))
    header = "# By `make deploy-config` from ../serve_config.yaml and differences.yaml, which says why; not by hand.\n"
    return header + yaml.safe_dump(content, sort_keys=False)


def ray_service() -> str:
    """rayservice.yaml with the serve configuration of now."""
    head, rest = RAY_SERVICE.read_text().split(_BEGIN)
    _, tail = rest.split(_END)
    indented = "".join(f"    {line}\n" for line in serve_config().splitlines())
    return head + _BEGIN + indented + _END + tail


if __name__ == "__main__":
    RAY_SERVICE.write_text(ray_service())
    SERVE_CONFIG.write_text(serve_config())
