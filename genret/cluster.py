"""Starting Ray, what it has, and one way to map batches over a pool of actors."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError

from genret.config import ComputeConfig
from genret.errors import InputError

Batch = TypeVar("Batch")
Result = TypeVar("Result")
ProgressFunction = Callable[[int, int], None]

# Batches under way an actor: one being worked on, one waiting, so that no actor idles between two.
_IN_FLIGHT = 2


@contextmanager
def connected(compute: ComputeConfig) -> Iterator[dict[str, float]]:
    """A Ray cluster for the time of a `with` block.

    Connects to `compute.address`, else to the cluster of the environment (RAY_ADDRESS, which a submitted job
    has), else starts Ray in this process without a dashboard. What was started here is stopped at the end.

    Args:
        compute: The `compute` section.

    Yields:
        The cluster's resources by name.

    Raises:
        InputError: The address answers nobody, or the cluster can never hold what the section asks for.
    """
    if ray.is_initialized():
        yield _check_resources(compute)
        return
    # Train prints every line of its workers twice otherwise.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    address = compute.address or os.environ.get("RAY_ADDRESS") or None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        # A laptop's own Ray asks for as many CPUs as the section names, however few the machine has: they are
        # slots to Ray, and a machine with one core then runs slower instead of never.
        slots = max(compute.cpu_workers * compute.cpus_a_worker, _training_cpus(compute), os.cpu_count() or 1)
        options |= {"include_dashboard": False, "num_cpus": int(slots)}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError) as error:
        raise InputError(f"compute.address: expected a running Ray cluster, found {address!r} ({error})") from error
    try:
        yield _check_resources(compute)
    finally:
        ray.shutdown()


def _training_cpus(compute: ComputeConfig) -> float:
    return compute.training_workers * compute.cpus_a_training_worker


def _check_resources(compute: ComputeConfig) -> dict[str, float]:
    resources = {name: float(amount) for name, amount in ray.cluster_resources().items()}
    autoscales = os.environ.get("RAY_CLUSTER_AUTOSCALES", "") == "1"
    needs = {
        "GPU": max(compute.gpus_a_worker, compute.training_workers * compute.gpus_a_training_worker),
        "CPU": max(compute.cpus_a_worker, _training_cpus(compute)),
    }
    for name, needed in needs.items():
        if needed > resources.get(name, 0.0) and not autoscales:
            raise InputError(
                f"compute: asks for {needed:g} {name}, the Ray cluster has {resources.get(name, 0.0):g}; ask for less, "
                "add nodes, or set RAY_CLUSTER_AUTOSCALES=1 on a cluster that grows by itself"
            )
    return resources


class _Worker:
    """Holds the state that a factory makes, and applies it to batches."""

    def __init__(self, factory: Callable[..., Callable[[Any], Any]], arguments: dict[str, Any]) -> None:
        self._apply = factory(**arguments)

    def apply(self, number: int, batch: Any) -> tuple[int, Any]:
        return number, self._apply(batch)


def map_batches(
    batches: Iterable[Batch],
    total: int,
    factory: Callable[..., Callable[[Batch], Result]],
    arguments: dict[str, Any],
    compute: ComputeConfig,
    *,
    gpus: float = 0.0,
    progress: ProgressFunction | None = None,
) -> Iterator[Result]:
    """Apply a function with state (an engine, a model) to batches, on a pool of actors.

    A batch whose actor dies is given to another; actors are started again up to three times each. Results do
    not depend on the number of actors.

    Args:
        batches: What to map over; drawn as the actors become free.
        total: How many batches there are.
        factory: Importable function that makes the function in each actor.
        arguments: Keyword arguments of the factory, sent once to each actor.
        compute: Number of actors and the CPUs of each.
        gpus: GPUs of each actor.
        progress: Called with the batches done and their number.

    Yields:
        Results in the order of the batches.

    Raises:
        RayActorError: Actors kept dying.
    """
    if total == 0:
        return
    count = min(compute.cpu_workers, total)
    actor_class = ray.remote(num_cpus=compute.cpus_a_worker, num_gpus=gpus, max_restarts=3, max_task_retries=3)(
        _Worker
    )
    actors = [actor_class.remote(factory, arguments) for _ in range(count)]
    waiting = iter(enumerate(batches))
    running: dict[Any, Any] = {}
    finished: dict[int, Result] = {}
    following = done = 0

    def submit(actor: Any) -> None:
        upcoming = next(waiting, None)
        if upcoming is not None:
            running[actor.apply.remote(*upcoming)] = actor

    try:
        for _ in range(_IN_FLIGHT):
            for actor in actors:
                submit(actor)
        while running:
            ready, _ = ray.wait(list(running), num_returns=1)
            actor = running.pop(ready[0])
            number, result = ray.get(ready[0])
            finished[number] = result
            done += 1
            submit(actor)
            if progress is not None:
                progress(done, total)
            while following in finished:
                yield finished.pop(following)
                following += 1
    finally:
        for actor in actors:
            ray.kill(actor)


class ProgressBoard:
    """Where a remote stage writes how far it is, for the driver to read."""

    def __init__(self) -> None:
        self._state: tuple[int, int, dict[str, float]] = (0, 0, {})

    def write(self, done: int, total: int, values: dict[str, float]) -> None:
        """Replace what stands on the board."""
        self._state = (done, total, values)

    def read(self) -> tuple[int, int, dict[str, float]]:
        """What stands on the board: done, total, and values by name."""
        return self._state


def start_board() -> Any:
    """A handle to a new `ProgressBoard` actor, which takes no CPU slot."""
    return ray.remote(num_cpus=0)(ProgressBoard).remote()


def read_board(board: Any) -> tuple[int, int, dict[str, float]] | None:
    """What stands on a board, or None when it does not answer."""
    try:
        state: tuple[int, int, dict[str, float]] = ray.get(board.read.remote(), timeout=10)
    except (RayActorError, ray.exceptions.GetTimeoutError):
        return None
    return state
