"""The service on Ray Serve: one deployment a retriever, one that knows the versions, and the ingress.

    client -> ingress -> retriever replicas
                \\-> versions <- every replica

The ingress checks requests, joins queries of different requests to batches, and puts passages to the ids that come
back. Every replica follows `Versions`: it asks for the plan, which is what to have loaded and which version to answer
from, and says what it has. So a new version takes over only when every replica has loaded and probed it.

By `genret serve` the ingress listens by itself. By `serve deploy` and RayService, which know services by the proxies on
their nodes, Ray Serve's proxy stands before it, and costs several times what the ingress does.
"""

import json
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import RayServeException

from genret.cluster import connected
from genret.config import ReplicasConfig, RunConfig, ServingConfig
from genret.errors import InputError
from genret.retrieval.fusion import FUSION
from genret.runs import RunStore
from genret.serving.batching import BATCHES_A_WORKER
from genret.serving.generating import ModelReplica
from genret.serving.ingress import Ingress, replicas_of
from genret.serving.keys import own_keys, sealed
from genret.serving.leader import Versions
from genret.serving.members import FusionReplica, RetrieverReplica
from genret.serving.plans import Setup
from genret.serving.ports import check_free
from genret.serving.versions import find_version, read_config, retriever_kind

APPLICATION = "genret"

# Only the head node has this resource: the ingress listens there.
_HEAD = {"node:__internal_head__": 0.001}

# What an ingress takes to stop once all is answered.
_LEAVE_SECONDS = 2.0


class Arguments(BaseModel):
    """What `serve deploy` gives to `build`."""

    model_config = ConfigDict(extra="forbid")

    run: str
    """Folder or URL of the run."""
    serving: dict[str, Any] = {}
    """Fields of the `serving` section, in place of the run's own."""


def _deployment(kind: type, name: str, replicas: ReplicasConfig, config: ServingConfig) -> Any:
    scaling: dict[str, Any] = {"num_replicas": replicas.min_replicas}
    if replicas.max_replicas > replicas.min_replicas:
        scaling = {
            "autoscaling_config": {
                "min_replicas": replicas.min_replicas,
                "max_replicas": replicas.max_replicas,
                # A replica that always has a batch waiting beside the one it works on wants company.
                "target_ongoing_requests": BATCHES_A_WORKER / 2,
                "upscale_delay_s": 5,
            }
        }
    return serve.deployment(
        kind,
        name=name,
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        max_ongoing_requests=_room(1, config),
        graceful_shutdown_timeout_s=config.drain_seconds,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=5,
        **scaling,
    )


def _room(workers: int, config: ServingConfig) -> int:
    """Batches that a replica takes in, where each ingress may think that it alone answers so many at a time."""
    return 2 * BATCHES_A_WORKER * workers * config.ingress_replicas + 4


def _replica(name: str) -> type:
    return RetrieverReplica if retriever_kind(name) == "bm25" else ModelReplica


def build(arguments: Arguments) -> Any:
    """The application, for `serve deploy`, `serve run` and RayService.

    Args:
        arguments: The run, and fields of the `serving` section.

    Returns:
        A Ray Serve application.

    Raises:
        InputError: There is no such run, it has no retriever, a field is out of bounds, or there is a certificate.
    """
    store = RunStore.open_existing(arguments.run)
    section = read_config(store).serving.model_dump(mode="json") | arguments.serving
    config = ServingConfig.model_validate_json(json.dumps(section), strict=True)
    _check_proxied(config)
    return _application(store, config, listens=False)


def _check_proxied(config: ServingConfig) -> None:
    if config.tls_certificate:
        raise InputError(
            "serving.tls_certificate: expected none behind Ray Serve's proxies, which speak HTTP only: end TLS before "
            f"them, found {config.tls_certificate!r}"
        )


def _application(store: RunStore, config: ServingConfig, listens: bool) -> Any:
    """The deployments; where the ingress `listens`, it answers HTTP itself at the head of the cluster."""
    names = find_version(store, config.retrievers).retrievers
    # Who starts a service in a shell gives the keys there, and the ingress may be on another machine.
    keys = sealed(own_keys(config)) if listens else None
    setup = Setup(store.url, config, secrets.token_hex(8), keys)
    one = ReplicasConfig()
    versions = _deployment(Versions, "versions", one, config).options(max_ongoing_requests=10_000).bind(setup, names)
    handles = {
        name: _deployment(_replica(name), name, replicas_of(config, name), config).bind(
            setup, name, replicas_of(config, name), versions
        )
        for name in names
        if name != FUSION
    }
    if FUSION in names:
        fusion = _deployment(FusionReplica, FUSION, replicas_of(config, FUSION), config)
        # One may have batches at all replicas of its parts.
        most = max(replicas_of(config, name).max_replicas for name in handles)
        handles[FUSION] = fusion.options(max_ongoing_requests=_room(most, config)).bind(setup, dict(handles), versions)
    ingress = _deployment(
        Ingress,
        "ingress",
        ReplicasConfig(min_replicas=config.ingress_replicas, max_replicas=config.ingress_replicas),
        config,
    )
    return ingress.options(
        # A little more than the ingress lets in: it turns the rest away itself, in its own words.
        max_ongoing_requests=config.max_requests + 64,
        max_queued_requests=config.max_requests,
        backpressure_config={"status_code": 503, "retry_after_s": 1},
        # Its HTTP server has all of that time; what comes after it must not be cut off.
        graceful_shutdown_timeout_s=config.drain_seconds + _LEAVE_SECONDS,
        ray_actor_options={"num_cpus": 0, "resources": _HEAD if listens else {}},
    ).bind(setup, {name: handles[name] for name in names}, versions, listens)


def serve_config(run: str, config: ServingConfig) -> str:
    """A config file (YAML) for `serve deploy` and RayService.

    Raises:
        InputError: There is no such run, or there is a certificate.
    """
    _check_proxied(config)
    # `build` begins with the run's own: a default in place of one of these is a change too.
    own = read_config(RunStore.open_existing(run)).serving.model_dump(mode="json", exclude_defaults=True)
    fields = config.model_dump(mode="json")
    changed = {name: fields[name] for name in {**own, **config.model_dump(exclude_defaults=True)}}
    return yaml.safe_dump(
        {
            "proxy_location": "EveryNode",
            "http_options": {"host": config.host, "port": config.port},
            "logging_config": _LOGGING,
            "applications": [
                {
                    "name": APPLICATION,
                    "route_prefix": "/",
                    "import_path": "genret.serving.app:build",
                    "args": {"run": run, "serving": changed},
                }
            ],
        },
        sort_keys=False,
    )


_LOGGING = {"encoding": "JSON", "enable_access_log": False}

# Of Ray Serve: one event loop a replica in place of three, and no log to the terminal. Less is lost between threads,
# and nothing here blocks the loop.
_TUNING = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}


@contextmanager
def running(run: str, config: RunConfig) -> Iterator[str]:
    """A service for the time of a `with` block; ready when the block begins, drained when it ends.

    Args:
        run: Folder or URL of the run.
        config: `serving` and `compute` count.

    Yields:
        Its address.

    Raises:
        InputError: There is no such run, it has no retriever, or the service cannot start; the message says why.
    """
    serving = config.serving
    for name, value in _TUNING.items():
        os.environ.setdefault(name, value)
    application = _application(RunStore.open_existing(run), serving, listens=True)
    if not (config.compute.address or os.environ.get("RAY_ADDRESS")):
        check_free(serving.host, serving.port)
    with ExitStack() as stack:
        with _deaf_children():
            stack.enter_context(connected(config.compute))
        stack.enter_context(deployed(application, run, serving.drain_seconds))
        yield _url(serving)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """What is started meanwhile does not hear SIGTERM, nor does what that starts.

    A signal to all of a service's processes, as supervisors send it, is then for this one alone, which has what has
    begun answered before it ends the others. Ray itself keeps SIGINT from them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def deployed(application: Any, run: str, drain_seconds: float) -> Iterator[None]:
    """An application on the cluster that is connected, for the time of a `with` block; drained when it ends.

    Args:
        application: What `build` gives.
        run: What errors name.
        drain_seconds: How long what has begun may take when the block ends, by an error too.

    Raises:
        InputError: The application cannot start. Errors of the block pass as they are.
    """
    serve.start(proxy_location=ProxyLocation.Disabled, logging_config=_LOGGING)
    try:
        try:
            # Without a prefix no proxy that the cluster may have leads here.
            serve.run(application, name=APPLICATION, route_prefix=None, logging_config=_LOGGING)
        except RuntimeError as error:
            raise InputError(f"{run}: the service did not start: {error}") from error
        try:
            yield
        finally:
            _drain(drain_seconds)
    finally:
        # Not all of Serve: the cluster may serve other things. One that is gone has nothing to delete.
        with suppress(RayServeException, RayError):
            serve.delete(APPLICATION)


def _url(config: ServingConfig) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{'https' if config.tls_certificate else 'http'}://{host}:{config.port}"


def _drain(seconds: float) -> None:
    """Have what has begun answered while there are still replicas that can; Serve stops all deployments at once."""
    with suppress(RayServeException, RayError, TimeoutError):
        serve.get_app_handle(APPLICATION).broadcast("close").results(timeout_s=seconds + 1)


def serve_until_stopped(run: str, config: RunConfig, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; requests that have begun are answered before it ends.

    Args:
        run: Folder or URL of the run.
        config: As `running` has it.
        ready: Called with the address when the service answers.
    """
    stop = Event()
    with ExitStack() as stack, running(run, config) as address:
        for number in (signal.SIGINT, signal.SIGTERM):
            # Until all has ended: with Ray's own handler a second signal would cut off what the first has answered.
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: stop.set()))
        ready(address)
        while not stop.wait(1):
            continue


def write_serve_config(path: Path, run: str, config: ServingConfig) -> None:
    """Write what `serve_config` gives."""
    path.write_text(serve_config(run, config), encoding="utf-8")
