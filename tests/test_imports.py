"""The rooms of the design: what each file may import, seen in a fresh interpreter, so that nothing rots."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "serve_app"

# From the bottom up: a file imports only files before it.
ORDER = [
    "errors",
    "settings",
    "configuration",
    "images",
    "request",
    "wire",
    "batching",
    "events",
    "client",
    "worklist",
    "report",
    "editing",
    "mailbox",
    "isolation",
    "protocol",
    "vae",
    "text_positions",
    "attention",
    "pipeline",
    "models",
    "calibration",
    "tickets",
    "engine",
    "local",
    "body",
    "budget",
    "decoder",
    "decoders",
    "fingerprint",
    "fields",
    "multipart",
    "json_body",
    "form",
    "keys",
    "keygen",
    "auth",
    "error_bodies",
    "cors",
    "edit_log",
    "answer",
    "sse",
    "editor",
    "job_vault",
    "kept_form",
    "job",
    "job_edit",
    "jobs",
    "door",
    "idempotency",
    "keyed_edits",
    "page",
    "openapi",
    "docs",
    "proxy_headers",
    "http",
    "autoscaling",
    "metrics",
    "refusals",
    "retries",
    "replica",
    "ray_errors",
    "editor_handle",
    "jobs_handle",
    "ledger_handle",
    "vault_actor",
    "job_keeper",
    "idempotency_keeper",
    "ingress",
    "app",
    "proxy_connection",
    "server",
    "machine",
    "weights",
    "checkup",
    "cli",
    "__main__",
]
WITH_TORCH = {"vae", "text_positions", "attention", "pipeline", "models", "local"}
WITH_STARLETTE = {
    *("body", "budget", "fingerprint", "fields", "multipart", "json_body", "form", "auth"),
    *(
        "error_bodies",
        "cors",
        "edit_log",
        "answer",
        "sse",
        "kept_form",
        "job",
        "job_edit",
        "jobs",
        "keyed_edits",
        "page",
    ),
    *("openapi", "docs", "proxy_headers", "http", "ingress", "proxy_connection", "checkup"),
}
WITH_RAY = {
    *("metrics", "replica", "ray_errors", "editor_handle", "jobs_handle", "ledger_handle", "vault_actor"),
    *("job_keeper", "idempotency_keeper", "ingress", "app", "server", "__main__"),
}
# Through what they import: the application is built without torch, and Ray Serve brings Starlette.
MAY_LOAD = {
    "torch": WITH_TORCH,
    "diffusers": WITH_TORCH,
    "transformers": WITH_TORCH,
    "starlette": WITH_STARLETTE | WITH_RAY,
    "ray": WITH_RAY,
}


def test_the_order_names_every_file():
    assert sorted(path.stem for path in PACKAGE.glob("*.py")) == sorted([*ORDER, "__init__"])


def imports_of(name: str) -> set[str]:
    """The modules of this package that a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "serve_app":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("serve_app."):
            found.add((node.module or "").removeprefix("serve_app."))
    return found


@pytest.mark.parametrize("name", ORDER)
def test_a_file_imports_only_files_before_it(name):
    assert imports_of(name) <= set(ORDER[: ORDER.index(name)])


def test_the_engine_knows_no_pipeline_and_the_policy_no_engine():
    assert not imports_of("engine") & WITH_TORCH
    assert imports_of("batching") == {"images", "request"}


@pytest.mark.parametrize("name", [name for name in ORDER if name not in WITH_TORCH])
def test_a_fresh_interpreter_loads_only_what_the_room_allows(name):
    watched = ", ".join(repr(library) for library in MAY_LOAD)
    script = f"import sys, serve_app.{name}; print(*[m for m in ({watched}) if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert [library for library in loaded if name not in MAY_LOAD[library]] == []
