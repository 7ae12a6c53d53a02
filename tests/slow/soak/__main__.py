"""Soak test: `python -m tests.slow.soak`. Its exit status is 1 if a promise did not hold.

Callers with two keys send valid edits of many shapes and hostile requests and disconnect at any moment, while GPU
replicas, and Redis with `--store redis`, are killed and the application is deployed anew. Afterwards every edit must
have had its own right answer, and nothing may be left in flight.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import asdict, dataclass, field
from heapq import nlargest
from operator import itemgetter
from pathlib import Path

import httpx
import ray
from ray import serve

from serve_app.api.keys import ApiKey
from serve_app.app import APP_NAME
from serve_app.deployments import environment
from serve_app.engine.stats import EngineStats
from serve_app.settings import (
    AppSettings,
    AuthSettings,
    EngineSettings,
    LimitSettings,
    ModelSettings,
    ResultSettings,
    StoreSettings,
)
from tests.ports import free_port
from tests.redis_server import PASSWORD, RedisServer, running_redis
from tests.slow.soak.callers import CALLERS, Caller, Outcomes, references_of
from tests.slow.soak.chaos import Chaos, deploy
from tests.slow.soak.edits import distinct_edits
from tests.slow.soak.memory import Memory

# Half of the callers have one key, half the other.
KEYS = {"ann": "key-of-ann", "bob": "key-of-bob"}


def _settings(keys_file: Path, redis: RedisServer | None, results: Path) -> AppSettings:
    """Small pictures and a fixed knee, as many edits a minute as two cores allow; shares that the callers exceed."""
    store = {} if redis is None else {"store": StoreSettings(url=redis.url)}
    return AppSettings(
        **store,
        results=ResultSettings() if redis is None else ResultSettings(store=f"file://{results}"),
        model=ModelSettings(cpu_threads=1, native_area=64 * 64),
        engine=EngineSettings(batch_tokens=4096, max_waiting=64, max_caller_samples=20),
        limits=LimitSettings(request_timeout_s=300, max_outputs=16),
        auth=AuthSettings(keys_file=keys_file),
    )


_MOST_GROWTH = 1.10
# All files of Ray's logs together, those of processes that are killed and start again included.
_MOST_LOG_BYTES = 8000
_QUIET_S = 60.0
_SLOWEST = 5


@dataclass
class Report:
    """Observations. `kept`: whether every promise held.

    `refused`: refusals of valid requests by status. `slowest_refusals_s`: by hostile request, or by status of a valid
    one, the slowest of them. `memory_growth`: of each process over the second half.
    """

    seed: int
    seconds: float
    requests: dict[str, int] = field(default_factory=dict)
    kills: int = 0
    store_kills: int = 0
    redeploys: int = 0
    answers_by_key: dict[str, int] = field(default_factory=dict)
    refused: dict[int, int] = field(default_factory=dict)
    slowest_refusals_s: dict[str, float] = field(default_factory=dict)
    log_bytes_per_request: float = 0.0
    worst_difference: int = 0
    slowest_s: float = 0.0
    memory_growth: dict[str, float] = field(default_factory=dict)
    left_in_flight: int = 0
    healthy: bool = False
    faults: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        return not self.faults and self.healthy and not self.left_in_flight


async def soak(
    base_url: str, settings: AppSettings, logs: Path, seed: int, seconds: float, redis: RedisServer | None
) -> Report:
    """Run the soak against the server at that address, whose Ray writes its logs into `logs`."""
    rng = random.Random(seed)
    edits, memory, outcomes = distinct_edits(rng), Memory(), Outcomes()
    sent = _Sent()
    async with AsyncExitStack() as stack:
        clients = [(name, await stack.enter_async_context(_client(base_url, key, sent))) for name, key in KEYS.items()]
        client = clients[0][1]
        references = await references_of(client, edits)
        logged, sent.requests = _bytes_of(logs), 0
        watching = asyncio.create_task(memory.watch())
        start_s = asyncio.get_running_loop().time()
        chaos = Chaos(settings, seconds, random.Random(seed + 1), redis)
        callers = [
            Caller(*clients[k % len(clients)], edits, references, outcomes, random.Random(f"{seed} {k}"))
            for k in range(CALLERS)
        ]
        await asyncio.gather(chaos.run(), *(caller.call_until(start_s + seconds) for caller in callers))
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        report = Report(
            seed=seed,
            seconds=seconds,
            requests=dict(outcomes.counts),
            kills=chaos.kills,
            store_kills=chaos.store_kills,
            redeploys=chaos.redeploys,
            answers_by_key=dict(outcomes.by_key),
            refused=dict(outcomes.refused),
            slowest_refusals_s=dict(nlargest(_SLOWEST, outcomes.slowest_refusals_s.items(), key=itemgetter(1))),
            log_bytes_per_request=round((_bytes_of(logs) - logged) / sent.requests, 1),
            worst_difference=outcomes.worst_difference,
            slowest_s=round(outcomes.slowest_s, 1),
            memory_growth=memory.growth(start_s + seconds / 2, start_s + seconds),
            left_in_flight=await _left_in_flight(),
            healthy=(await client.get("/health/ready")).status_code == 200,
            faults=outcomes.faults,
        )
    report.faults += [f"memory of {name}: × {by:.2f}" for name, by in report.memory_growth.items() if by > _MOST_GROWTH]
    if report.log_bytes_per_request > _MOST_LOG_BYTES:
        report.faults.append(f"{report.log_bytes_per_request:g} bytes of log a request")
    return report


@dataclass
class _Sent:
    """The number of requests sent by all clients together."""

    requests: int = 0

    async def count(self, _: httpx.Request) -> None:
        self.requests += 1


def _client(base_url: str, key: str, sent: _Sent) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=base_url,
        headers={"Authorization": f"Bearer {key}"},
        timeout=400,
        limits=httpx.Limits(max_connections=2 * CALLERS),
        event_hooks={"request": [sent.count]},
    )


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


async def _left_in_flight() -> int:
    """Return the samples still in the engines some time after all callers disconnected; 0 as soon as none is."""
    editor = serve.get_deployment_handle("ImageEditor", app_name=APP_NAME)
    give_up_s = time.monotonic() + _QUIET_S
    empty = 0
    while True:
        # Each call reaches some replica, hence several calls.
        stats: EngineStats = await editor.stats.remote()
        left = stats.waiting + stats.running + stats.paused
        empty = 0 if left else empty + 1
        if empty >= 8 or time.monotonic() > give_up_s:
            return left
        await asyncio.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.slow.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn (%(default)s)")
    parser.add_argument("--store", choices=["memory", "redis"], default="memory", help="of the jobs (%(default)s)")
    parser.add_argument("--output", type=Path, help="file for the report, as JSON")
    arguments = parser.parse_args()
    # Ray's workers have niceness 15 by default, with which they get hardly any time on a busy machine.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - so Ray spells it
    port = free_port()
    environment.set_defaults()
    os.environ[StoreSettings().password_env] = PASSWORD
    context = ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    logs = Path(context.address_info["session_dir"]) / "logs"
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
            keys = folder / "keys"
            keys.write_text("".join(f"{ApiKey.of(key, name).line}\n" for name, key in KEYS.items()))
            redis = stack.enter_context(running_redis(folder)) if arguments.store == "redis" else None
            settings = _settings(keys, redis, folder / "results")
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            deploy(settings)
            url = f"http://127.0.0.1:{port}"
            report = asyncio.run(soak(url, settings, logs, arguments.seed, arguments.seconds, redis))
    finally:
        serve.shutdown()
        ray.shutdown()
    text = json.dumps({"kept": report.kept, **asdict(report)}, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)
    sys.exit(not report.kept)


if __name__ == "__main__":
    main()
