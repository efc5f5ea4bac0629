"""What a file for `serve deploy` names, as docs/serve-ray.yaml: `application` makes the server's two deployments."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.types import ASGIApp

from hawk.errors import HawkError
from hawk.server.app import make_app
from hawk.server.config import LOG_FORMAT, Limits, ServerConfig, check_origin, host_name, read_keys
from hawk.server.metrics import ServerMetrics
from hawk.server.on_ray import ServedReplicas, drawer_deployment
from hawk.server.remote import RemoteWorker
from hawk.server.replica import ReplicaSettings


class Arguments(BaseModel):
    """The field `args` of the file: the options of `hawk serve`, with the same defaults."""

    model_config = ConfigDict(extra="forbid")

    model: str = "bundled"
    drafter: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    engine: str = "auto"
    threads: int | None = Field(None, ge=1, le=1024)
    max_batch: int = Field(4, ge=1, le=256)
    max_queue: int = Field(64, ge=0, le=10_000)
    per_client: int = Field(16, ge=1, le=10_000)
    timeout: float = Field(300.0, ge=0.001)
    api_key_file: Path | None = None
    no_auth: bool = False
    allowed_hosts: list[str] = []
    cors: list[str] = []
    log_prompts: bool = False

    @property
    def config(self) -> ServerConfig:
        """The settings of the server.

        Raises:
            HawkError: an argument is wrong, or there is no key and no word that none is wanted.
        """
        if self.api_key_file is None and not self.no_auth:
            raise HawkError("args must have api_key_file, or no_auth: true for no key")
        keys = () if self.api_key_file is None else read_keys(self.api_key_file)
        for origin in self.cors:
            check_origin(origin)
        hosts = tuple(host_name(name) for name in self.allowed_hosts)
        limits = Limits(queue=self.max_queue, per_client=self.per_client, timeout=self.timeout)
        return ServerConfig(self.max_batch, limits, keys, tuple(self.cors), hosts, self.log_prompts)

    @property
    def replica(self) -> ReplicaSettings:
        """The settings of a replica, but for the device "auto"."""
        loaded = (self.model, self.device, self.dtype, self.drafter, self.engine, self.threads)
        return ReplicaSettings(*loaded, self.max_batch, self.config.limits)


def arguments_of(given: dict[str, Any]) -> Arguments:
    """The arguments of a file; `HawkError` names the first one that is wrong."""
    try:
        return Arguments.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise HawkError(f"args: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


class Front:
    """Answers HTTP that Ray's proxies hand on, by the same application as `hawk serve`."""

    def __init__(self, drawers: Any, config: ServerConfig) -> None:
        self.drawers, self.config = drawers, config
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application; Ray Serve calls this method once."""
        from ray import serve

        found = ServedReplicas(self.drawers, serve.get_replica_context().app_name)
        metrics = ServerMetrics(self.config.places)
        worker = RemoteWorker(found, await found.introduce(), metrics, self.config.log_prompts)
        worker.start()
        return make_app(self.config, worker, metrics)


def application(args: dict[str, Any]) -> Any:
    """The application of Ray Serve: `Front`, which Ray's proxies call, and the `Drawer`s behind it.

    Raises:
        HawkError: an argument is wrong.
    """
    import ray
    from ray import serve

    arguments = arguments_of(args)
    settings, config = arguments.replica, arguments.config
    if settings.device == "auto":
        settings = replace(settings, device="cuda" if ray.cluster_resources().get("GPU") else "cpu")
    front = serve.deployment(
        serve.ingress()(Front),
        name=Front.__name__,
        max_ongoing_requests=config.limits.connections,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=config.limits.timeout,
    )
    return front.bind(drawer_deployment(settings, config.limits.timeout), config)
