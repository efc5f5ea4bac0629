"""Images that the replicas of a Ray cluster draw, by Ray Serve.

`hawk serve --ray` answers HTTP itself and has a deployment of `Drawer`s, which ends with the command. A file for
`serve deploy` has the same deployment, and one of `Front`s behind Ray's proxies (`hawk.server.ray_app`).
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from hawk.errors import HawkError, one_line
from hawk.processes import without_stderr
from hawk.server.card import ModelCard
from hawk.server.config import ServerConfig
from hawk.server.jobs import FullError, Wish
from hawk.server.metrics import ServerMetrics
from hawk.server.remote import LostError, RemoteWorker
from hawk.server.replica import Drawer, ReplicaSettings, Report
from hawk.server.running import LAST_ANSWERS

LOGGER = logging.getLogger(__name__)

RETRY = 5
"""Seconds after which a client whose request found no room is told to try again."""
HEALTH_SECONDS = 2.0
"""Seconds between two checks of a replica: a replica that was killed is replaced after so many."""
QUIET = {"enable_access_log": False, "log_level": "WARNING"}
"""Settings of Ray's logs, which lie on the machines of the cluster."""


@dataclass(frozen=True)
class ServedReplicas:
    """The replicas behind the handle of a deployment of `Drawer`s in an application of Ray Serve."""

    handle: Any
    application: str

    async def introduce(self) -> ModelCard:
        """Facts about the model; `HawkError` where a replica could not load it."""
        card = await self.handle.introduce.remote()
        if isinstance(card, str):
            raise HawkError(card)
        return card

    async def draw(self, wish: Wish, client: str, timeout: float) -> AsyncGenerator[Report, None]:
        """Let a replica draw a job: see `hawk.server.remote.Replicas`."""
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import BackPressureError, RayServeException

        reports = self.handle.options(stream=True).draw.remote(wish, client, timeout)
        over = False
        try:
            async for report in reports:
                over = report.last
                yield report
        except BackPressureError as error:
            raise FullError(RETRY) from error
        except RayTaskError:  # a fault of the replica's code
            raise
        except (RayError, RayServeException) as error:
            raise LostError(one_line(error)) from error
        except (asyncio.CancelledError, GeneratorExit):
            if not over:
                with suppress(RayError, RayServeException):  # what the request has failed by meanwhile
                    reports.cancel()
            raise

    def running(self) -> int:
        """The number of replicas that take jobs; 0 where the cluster does not answer."""
        from ray import serve
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        try:
            applications = serve.status().applications
        except (RayError, RayServeException, OSError) as error:
            LOGGER.warning("the Ray cluster does not answer: %s", one_line(error))
            return 0
        if self.application not in applications:
            return 0
        found = applications[self.application].deployments[Drawer.__name__].replica_states
        return int(found.get("RUNNING", 0))


def drawer_deployment(settings: ReplicaSettings, seconds: float, **options: Any) -> Any:
    """The deployment of `Drawer`s, which have so many seconds to end what they draw before they are stopped.

    `limits.queue` requests may wait until a replica has room. They outlive any replica, and a new replica gets its
    share of them.
    """
    from ray import serve

    deployment = serve.deployment(
        Drawer,
        name=Drawer.__name__,
        max_ongoing_requests=settings.requests,
        max_queued_requests=max(1, settings.limits.queue),  # Ray takes no 0
        ray_actor_options=resources(settings),
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=seconds,
        logging_config=QUIET,
        **options,
    )
    return deployment.bind(settings)


def resources(settings: ReplicaSettings) -> dict[str, int]:
    """What of a machine a replica takes."""
    return {"num_cpus": settings.threads or 1, "num_gpus": int(settings.device.startswith("cuda"))}


@contextmanager
def replicas_on_ray(
    settings: ReplicaSettings, replicas: int, config: ServerConfig, metrics: ServerMetrics, shared: bool
) -> Iterator[RemoteWorker]:
    """A backend of so many replicas on the cluster that this process is connected to; they end with the body.

    A cluster that is not `shared` ends with this process, and its replicas with it.

    Raises:
        HawkError: the replicas cannot load the model, or do not start.
    """
    from ray import serve

    name = f"hawk-{uuid.uuid4().hex[:8]}"
    before = serve.status()
    began = not before.proxies and not before.applications  # whether Ray Serve has to be started
    deployment = drawer_deployment(settings, LAST_ANSWERS, num_replicas=replicas)
    LOGGER.info("%d replicas start on the Ray cluster, as soon as it has room for them", replicas)
    try:
        try:
            with without_stderr():  # Ray Serve writes its progress there
                if began:
                    serve.start(proxy_location="Disabled", logging_config=QUIET)
                logging.getLogger("ray.serve").setLevel(logging.ERROR)
                found = ServedReplicas(serve.run(deployment, name=name, route_prefix=None), name)
        except RuntimeError as error:
            raise HawkError(f"the replicas did not start: {one_line(error)}") from error
        yield RemoteWorker(found, asyncio.run(found.introduce()), metrics, config.log_prompts)
    finally:
        if shared:
            with without_stderr():
                serve.delete(name, _blocking=False)
                if began and not serve.status().applications.keys() - {name}:
                    serve.shutdown()
