"""Starting Ray, what it has, and two ways to map over actors: batches in their order, and streams of rows."""

import ctypes
import logging
import math
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import pyarrow as pa
import ray
from pyarrow import fs
from ray.data import ActorPoolStrategy, DataContext, Dataset, read_parquet
from ray.exceptions import RayActorError, RayTaskError

from genret.config import ComputeConfig
from genret.errors import InputError

Batch = TypeVar("Batch")
Result = TypeVar("Result")
ProgressFunction = Callable[[int, int], None]

# Batches under way an actor: one being worked on, one waiting, so that no actor idles between two.
_IN_FLIGHT = 2
# Ray leaves all GPUs visible to a worker that asked for none; results would depend on hardware that the
# configuration says is not used.
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
# How often a batch may lose its actor: it may be the batch that kills it.
_MOST_LOSSES = 3


@contextmanager
def connected(compute: ComputeConfig, engine: Mapping[str, float] | None = None) -> Iterator[dict[str, float]]:
    """A Ray cluster for the time of a `with` block.

    Connects to `compute.address`, else to the cluster of the environment (RAY_ADDRESS, which a submitted job
    has), else starts Ray in this process without a dashboard. What was started here is stopped at the end.

    Args:
        compute: The `compute` section.
        engine: CPUs and GPUs by name (`CPU`, `GPU`) that the engine of the `llm` section takes at least.

    Yields:
        The cluster's resources by name.

    Raises:
        InputError: The address answers nobody, or the cluster can never hold what the sections ask for.
    """
    engine = engine or {}
    if ray.is_initialized():
        yield _check_resources(compute, engine)
        return
    # Train prints every line of its workers twice otherwise.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    address = compute.address or os.environ.get("RAY_ADDRESS") or None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        # A laptop's own Ray asks for as many CPUs as the section names, however few the machine has: they are
        # slots to Ray, and a machine with one core then runs slower instead of never.
        slots = max(
            compute.cpu_workers * compute.cpus_a_worker,
            _training_cpus(compute),
            engine.get("CPU", 0.0),
            os.cpu_count() or 1,
        )
        options |= {"include_dashboard": False, "num_cpus": math.ceil(slots)}
    try:
        ray.init(address=address or "local", **options)
    except (ConnectionError, ValueError) as error:
        raise InputError(f"compute.address: expected a running Ray cluster, found {address!r} ({error})") from error
    try:
        yield _check_resources(compute, engine)
    finally:
        ray.shutdown()


def _training_cpus(compute: ComputeConfig) -> float:
    return compute.training_workers * compute.cpus_a_training_worker


def _check_resources(compute: ComputeConfig, engine: Mapping[str, float]) -> dict[str, float]:
    resources = {name: float(amount) for name, amount in ray.cluster_resources().items()}
    autoscales = os.environ.get("RAY_CLUSTER_AUTOSCALES", "") == "1"
    needs = [
        ("compute", "GPU", max(compute.gpus_a_worker, compute.training_workers * compute.gpus_a_training_worker)),
        ("compute", "CPU", max(compute.cpus_a_worker, _training_cpus(compute))),
        *(("llm", name, needed) for name, needed in engine.items()),
    ]
    for section, name, needed in needs:
        if needed > resources.get(name, 0.0) and not autoscales:
            raise InputError(
                f"{section}: asks for {needed:g} {name}, the Ray cluster has {resources.get(name, 0.0):g}; ask for "
                "less, add nodes, or set RAY_CLUSTER_AUTOSCALES=1 on a cluster that grows by itself"
            )
    return resources


class _Worker:
    """Holds the state that a factory makes, and applies it to batches."""

    def __init__(self, factory: Callable[..., Callable[[Any], Any]], arguments: dict[str, Any]) -> None:
        # Called with the first batch: an error here would only say that the actor died.
        self._make = partial(factory, **arguments)
        self._apply: Callable[[Any], Any] | None = None

    def ready(self) -> None:
        """Answers once the actor runs."""

    def apply(self, batch: Any) -> Any:
        if self._apply is None:
            self._apply = self._make()
        return self._apply(batch)


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

    A batch whose actor dies is given to a new one. Results do not depend on the number of actors.

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
        InputError: Raised by the function in an actor.
        RayTaskError: Any other error there.
        RayActorError: A batch lost its actor four times.
    """
    if total == 0:
        return
    pool = _Pool(factory, arguments, compute, gpus)
    waiting = enumerate(batches)
    finished: dict[int, Result] = {}
    following = done = 0
    try:
        for number, batch in islice(waiting, _IN_FLIGHT * min(compute.cpu_workers, total)):
            pool.submit(number, batch)
        while pool.busy:
            number, result = pool.next_result()
            finished[number] = result
            done += 1
            for upcoming, batch in islice(waiting, 1):
                pool.submit(upcoming, batch)
            if progress is not None:
                progress(done, total)
            while following in finished:
                yield finished.pop(following)
                following += 1
    finally:
        pool.close()


@dataclass
class _Task:
    number: int
    batch: Any
    actor: Any = None
    losses: int = 0


class _Pool:
    """Actors that hold the same function, and the batches that they are working on.

    Batches go only to actors that have started: on a cluster without room for all of them, those that run do all
    the work, and the others may never start.
    """

    def __init__(
        self, factory: Callable[..., Any], arguments: dict[str, Any], compute: ComputeConfig, gpus: float
    ) -> None:
        options: dict[str, Any] = {"num_cpus": compute.cpus_a_worker, "num_gpus": gpus}
        if not gpus:
            options["runtime_env"] = {"env_vars": NO_GPU}
        self._class = ray.remote(**options)(_Worker)
        self._factory = factory
        self._arguments = ray.put(arguments)
        self._size = compute.cpu_workers
        self._queue: deque[_Task] = deque()
        self._starting: dict[Any, Any] = {}
        self._load: dict[Any, int] = {}
        self._running: dict[Any, _Task] = {}

    @property
    def busy(self) -> bool:
        """Whether any batch is not done."""
        return bool(self._queue or self._running)

    def submit(self, number: int, batch: Any) -> None:
        """Put a batch into the queue."""
        self._queue.append(_Task(number, batch))
        self._fill()

    def next_result(self) -> tuple[int, Any]:
        """Wait for any batch; one that lost its actor is begun again elsewhere."""
        while True:
            ready, _ = ray.wait([*self._starting, *self._running], num_returns=1)
            if ready[0] in self._starting:
                self._greet(ready[0])
                continue
            task = self._running.pop(ready[0])
            if task.actor in self._load:
                self._load[task.actor] -= 1
            try:
                result = ray.get(ready[0])
            except RayTaskError as error:
                if isinstance(error.cause, InputError):
                    raise error.cause from error
                raise
            except RayActorError:
                self._load.pop(task.actor, None)
                task.losses += 1
                if task.losses > _MOST_LOSSES:
                    raise
                self._queue.appendleft(task)
                self._fill()
                continue
            self._fill()
            return task.number, result

    def close(self) -> None:
        """End all actors, also those that never started."""
        for actor in (*self._load, *self._starting.values()):
            ray.kill(actor)

    def _greet(self, ready: Any) -> None:
        actor = self._starting.pop(ready)
        ray.get(ready)
        self._load[actor] = 0
        self._fill()

    def _fill(self) -> None:
        """Hand the queue to actors with room, and start more where it is longer than they can take."""
        while self._queue:
            free = [actor for actor, load in self._load.items() if load < _IN_FLIGHT]
            if not free:
                break
            task = self._queue.popleft()
            task.actor = min(free, key=lambda actor: self._load[actor])
            self._load[task.actor] += 1
            self._running[task.actor.apply.remote(task.batch)] = task
        while len(self._load) + len(self._starting) < self._size and len(self._starting) < len(self._queue):
            actor = self._class.remote(self._factory, self._arguments)
            self._starting[actor.ready.remote()] = actor


def stream_rows(
    filesystem: fs.FileSystem,
    folder: str,
    rows_a_block: int,
    transform: Callable[[Dataset], Dataset],
) -> Iterator[pa.Table]:
    """Stream the rows of Parquet files through Ray Data.

    Blocks are read as they are worked on and dropped afterwards: neither the driver nor the cluster ever holds all
    of them. A block whose actor dies is given to its successor from the block's beginning, so that what must not be
    done twice has to be kept by the actor. (Ray Data's own checkpoints, `ray.data.checkpoint`, are no help with
    that: a checkpoint names the rows of a whole block, and is written when the block is.)

    Args:
        filesystem: Where the files are; readable on all nodes.
        folder: Their folder in it.
        rows_a_block: How many rows reach an actor together (at most).
        transform: What to do with the rows, as a chain of the dataset's methods. Should return few and small
            columns: these travel to the driver.

    Yields:
        Tables of the rows that come out, in any order. Leaving the iterator ends everything.
    """
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    # A slow model may need longer than any fixed time for a block: whether there is progress is for the actors to
    # judge.
    context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with DataContext.current(context):
        rows = read_parquet(folder, filesystem=filesystem, partitioning=None)
        results = transform(rows.repartition(target_num_rows_per_block=rows_a_block))
    yield from results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def waiting_actors(actors: int, blocks: int) -> dict[str, Any]:
    """Options of `Dataset.map_batches` for actors that mostly wait for the network, and so take no CPU slot.

    Args:
        actors: How many.
        blocks: How many blocks each works on at a time, in threads. One more is kept ready for it.
    """
    pool = ActorPoolStrategy(
        size=actors,
        max_concurrent_calls_per_actor=blocks,
        max_tasks_in_flight_per_actor=blocks + 1,
        enable_true_multi_threading=True,
    )
    return {
        "compute": pool,
        "num_cpus": 0,
        "batch_size": None,
        "batch_format": "pyarrow",
        "runtime_env": {"env_vars": NO_GPU},
    }


def die_with_node() -> None:
    """End this worker's process when its node is killed, which it would notice only when its work is done.

    Linux alone has the means (prctl(2), PR_SET_PDEATHSIG).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class ProgressBoard:
    """Where a remote stage writes how far it is, for the driver to read."""

    def __init__(self) -> None:
        self._state: tuple[int, int, dict[str, float]] = (0, 0, {})
        self._refusal = ""

    def write(self, done: int, total: int, values: dict[str, float]) -> None:
        """Replace what stands on the board."""
        self._state = (done, total, values)

    def refuse(self, message: str) -> None:
        """Say that the stage cannot work with what it was given."""
        self._refusal = message

    def read(self) -> tuple[int, int, dict[str, float]]:
        """What stands on the board: done, total, and values by name.

        Raises:
            InputError: The stage refused its input.
        """
        if self._refusal:
            raise InputError(self._refusal)
        return self._state


def start_board() -> Any:
    """A handle to a new `ProgressBoard` actor, which takes no CPU slot."""
    return ray.remote(num_cpus=0)(ProgressBoard).remote()


def read_board(board: Any) -> tuple[int, int, dict[str, float]] | None:
    """What stands on a board, or None when it does not answer.

    Raises:
        InputError: The stage refused its input.
    """
    try:
        state: tuple[int, int, dict[str, float]] = ray.get(board.read.remote(), timeout=10)
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from error
        raise
    except (RayActorError, ray.exceptions.GetTimeoutError):
        return None
    return state
