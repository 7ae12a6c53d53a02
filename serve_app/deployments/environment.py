"""The environment of Ray's processes on every node: what Ray and Serve (2.60) have no other setting for.

`image-edits serve` sets it; the files in deploy/ name the same variables and values.
"""

import os

from serve_app.api import proxy_connection

VARIABLES = {
    proxy_connection.VARIABLE: proxy_connection.VALUE,
    # Each process keeps at most four log files of 64 MB. Ray's own default is six of 512 MB, and none for the output of
    # its worker processes, which grows without end.
    "RAY_ROTATION_MAX_BYTES": str(64 * 10**6),
    "RAY_ROTATION_BACKUP_COUNT": "3",
    # A proxy that has died is replaced after three failed checks: after 2 to 3 s, before 20 to 30.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # Threads of torch that wait for work on a CPU spin by default, and take the cores from those that have some.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def set_defaults() -> None:
    """Set the variables that are not set yet, for a Ray that this process starts later."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
