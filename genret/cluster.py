"""Starting Ray, what it has, and two ways to map over actors: batches in their order, and streams of rows."""

import ctypes
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import ray
from pyarrow import fs
from ray._private.worker import global_worker
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.exceptions import (
    ActorHandleNotFoundError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from genret.config import ComputeConfig
from genret.errors import InputError
from genret.parts import Counted
from genret.placement import Capacity, Demand, check_demands, describe, read_growth

if TYPE_CHECKING:
    from ray.data import Dataset

Batch = TypeVar("Batch")
Result = TypeVar("Result")
ProgressFunction = Callable[[int, int], None]

# Batches under way an actor: one being worked on, one waiting, so that no actor idles between two.
_IN_FLIGHT = 2
# Ray leaves all GPUs visible to a worker that asked for none; results would depend on hardware that the
# configuration says is not used.
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
# How far batches may be begun ahead of the first whose result is missing, in times of those under way: results that
# have to wait for it are held.
_AHEAD = 4
# How often a batch may lose its actor, or its result: it may be the batch that kills it. And how often an actor may die
# while it starts before there are fewer of them.
_MOST_LOSSES = 3
_LOSSES = (RayActorError, OutOfMemoryError, ObjectLostError)
# How often to look for requests without room, how long one may wait before a word is said, and when it is said again.
_LOOK_SECONDS = 5.0
_PATIENCE_SECONDS = 60.0
_REPEAT_SECONDS = 600.0
_LOGGER = logging.getLogger("genret")


@contextmanager
def connected(compute: ComputeConfig, engine: Sequence[Demand] = ()) -> Iterator[dict[str, float]]:
    """A Ray cluster for the time of a `with` block.

    Meanwhile, what waits for room in it for more than a minute is said in the log: what is asked for, what the cluster
    has and what it may grow to.

    Connects to `compute.address`, else to the cluster of the environment (RAY_ADDRESS, which a submitted job
    has), else starts Ray in this process without a dashboard. What was started here is stopped at the end.

    Args:
        compute: The `compute` section.
        engine: What the engine of the `llm` section needs at least.

    Yields:
        The cluster's resources by name.

    Raises:
        InputError: The address answers nobody, or the cluster can never hold what the sections ask for.
    """
    demands = [*compute_demands(compute), *engine]
    if ray.is_initialized():
        check_demands(demands, _capacity())
        yield _totals()
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
            sum(demand.bundle.get("CPU", 0.0) * demand.count for demand in engine),
            os.cpu_count() or 1,
        )
        options |= {"include_dashboard": False, "num_cpus": math.ceil(slots)}
    try:
        ray.init(address=address or "local", **options)
    except (ConnectionError, ValueError) as error:
        raise InputError(f"compute.address: expected a running Ray cluster, found {address!r} ({error})") from error
    try:
        check_demands(demands, _capacity())
        with _said_what_waits():
            yield _totals()
    finally:
        ray.shutdown()


def has_dashboard() -> bool:
    """Whether the connected Ray has a dashboard; one that was started here has none."""
    return bool(global_worker.node.address_info.get("webui_url"))


def _totals() -> dict[str, float]:
    return {name: float(amount) for name, amount in ray.cluster_resources().items()}


def _training_cpus(compute: ComputeConfig) -> float:
    return compute.training_workers * compute.cpus_a_training_worker


def compute_demands(compute: ComputeConfig) -> list[Demand]:
    """What the `compute` section needs: room for one worker, as one does all the work, and the fewest that train."""
    worker = {"CPU": compute.cpus_a_worker, "GPU": compute.gpus_a_worker}
    training = {"CPU": compute.cpus_a_training_worker, "GPU": float(compute.gpus_a_training_worker)}
    least = compute.min_training_workers or compute.training_workers
    setting = "min_training_workers" if compute.min_training_workers else "training_workers"
    return [
        Demand("compute", "a worker (cpus_a_worker, gpus_a_worker)", worker),
        Demand("compute", f"training ({setting})", training, least),
    ]


def _capacity() -> Capacity:
    """What the connected cluster has, and may grow to."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    groups, most, unknown = read_growth(os.environ.get("RAY_CLUSTER_AUTOSCALES", ""))
    return Capacity(nodes, groups, most, unknown)


def submission_id() -> str:
    """The id of the submitted job that this process is the driver of; empty where it is none."""
    try:
        settings = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    except ValueError:
        return ""
    return str(settings.get("metadata", {}).get("job_submission_id", ""))


class _WaitingRoom:
    """Says in the log what waits for room in the cluster, where it has waited for long."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}
        self._since: dict[str, float] = {}

    def look(self, waiting: Mapping[str, int], now: float, capacity: Callable[[], str]) -> str:
        """What is to be said.

        Args:
            waiting: Number of requests that wait, by what they ask for.
            now: Seconds by any clock.
            capacity: Says what the cluster has.

        Returns:
            A message, or nothing.
        """
        self._since = {shape: self._since.get(shape, now) for shape in waiting}
        late = [
            shape
            for shape in waiting
            if now - self._since[shape] >= _PATIENCE_SECONDS
            and now - self._said.get(shape, -math.inf) >= _REPEAT_SECONDS
        ]
        if not late:
            return ""
        self._said |= dict.fromkeys(late, now)
        asked = ", ".join(f"{waiting[shape]} x ({shape})" for shape in late)
        return f"waiting for room in the cluster: asked for {asked}; {capacity()}"


@contextmanager
def _said_what_waits() -> Iterator[None]:
    """Meanwhile, say in the log what waits for room."""
    stopped = threading.Event()
    gcs = global_worker.gcs_client

    def watch() -> None:
        room = _WaitingRoom()
        while not stopped.wait(_LOOK_SECONDS):
            try:
                message = room.look(_waiting(gcs), time.monotonic(), lambda: str(_capacity()))
            except (RuntimeError, OSError, InputError, RayError):
                continue  # the cluster is busy, or ends
            if message:
                _LOGGER.warning(message)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(timeout=_LOOK_SECONDS)


def _waiting(gcs: Any) -> dict[str, int]:
    """Actors, tasks and gangs that no node has room for at the moment: how many, by what they ask for."""
    state = get_cluster_resource_state(gcs)
    waiting: dict[str, int] = {}
    requests = [(entry.request, entry.count) for entry in state.pending_resource_requests]
    requests += [(request, 1) for gang in state.pending_gang_resource_requests for request in gang.requests]
    for request, count in requests:
        amounts = {name: amount for name, amount in request.resources_bundle.items() if "_group_" not in name}
        if amounts:  # what a placement group holds has its room
            shape = describe(amounts)
            waiting[shape] = waiting.get(shape, 0) + count
    return waiting


@dataclass(frozen=True)
class _Job:
    """One function to map with. Actors are told it with every batch, since a new one may get any batch."""

    number: int
    factory: Callable[..., Callable[[Any], Any]]
    arguments: tuple[Any]


class _Worker:
    """Holds the function that a job's factory makes, and applies it to batches."""

    def __init__(self, hide_gpus: bool) -> None:
        if hide_gpus:
            os.environ.update(NO_GPU)
        self._number = -1
        self._function: Callable[[Any], Any] | None = None

    def ready(self) -> None:
        """Answers once the actor runs."""

    def apply(self, job: _Job, batch: Any) -> Any:
        if self._function is None or self._number != job.number:
            self._function = None  # two functions at once may be more than there is room for
            self._function, self._number = job.factory(**ray.get(job.arguments[0])), job.number
        return self._function(batch)


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
        RayError: A batch lost its actor or its result four times, or actors die while they start and none is left.
    """
    pool = ActorPool(compute, gpus)
    try:
        yield from pool.map(batches, total, factory, arguments, progress)
    finally:
        pool.close()


@dataclass
class _Task:
    number: int
    batch: Any
    actor: Any = None
    losses: int = 0


class ActorPool:
    """Actors that apply a function to batches, and the batches that they are working on.

    They start with the first batches and stay for further functions, one after another, until the pool is closed;
    if it is used again, others start. Between two functions an actor keeps the last one, with all that belongs to it.
    Batches go only to actors that have started: on a cluster without room for all of them, those that run do all the
    work, and the others may never start.

    Args:
        compute: Number of actors and the CPUs of each.
        gpus: GPUs of each actor.
    """

    def __init__(self, compute: ComputeConfig, gpus: float = 0.0) -> None:
        self._class = ray.remote(num_cpus=compute.cpus_a_worker, num_gpus=gpus)(_Worker)
        self._hide_gpus = not gpus
        self.size = compute.cpu_workers
        self._jobs = 0
        self._job: _Job | None = None
        self._queue: deque[_Task] = deque()
        self._starting: dict[Any, Any] = {}
        self._load: dict[Any, int] = {}
        self._running: dict[Any, _Task] = {}
        self._lost_starts = 0

    def map(
        self,
        batches: Iterable[Batch],
        total: int,
        factory: Callable[..., Callable[[Batch], Result]],
        arguments: dict[str, Any],
        progress: ProgressFunction | None = None,
    ) -> Iterator[Result]:
        """Apply a function with state to batches; as `map_batches`.

        If it is left before its end, or ends with an error, the pool is closed.

        Raises:
            RuntimeError: Another function is under way; and what `map_batches` raises.
        """
        if total == 0:
            return
        if self._job is not None:
            raise RuntimeError("expected one function after another, found that the pool is at work")
        self._jobs += 1
        # What killed actors while they started may be gone.
        self._lost_starts = 0
        try:
            # In a tuple, a reference stays one: each actor fetches the arguments once, and not with every batch.
            self._job = _Job(self._jobs, factory, (ray.put(arguments),))
            yield from self._results(batches, total, progress)
            self._job = None
        except BaseException:
            self.close()  # with what the actors are still working on
            raise

    @property
    def started(self) -> bool:
        """Whether it has an actor."""
        return bool(self._load)

    def apply(self, function: Callable[[Batch], Result], batches: Counted[Batch]) -> Iterator[Result]:
        """Apply a function, which must be one that can be pickled, to batches; as `map`."""
        return self.map(batches, len(batches), _as_it_is, {"function": function})

    def _results(self, batches: Iterable[Any], total: int, progress: ProgressFunction | None) -> Iterator[Any]:
        waiting = enumerate(batches)
        finished: dict[int, Any] = {}
        submitted = following = done = 0
        most = _IN_FLIGHT * min(self.size, total)

        def draw() -> None:
            nonlocal submitted
            room = min(done + most, following + _AHEAD * most) - submitted
            for number, batch in islice(waiting, max(0, room)):
                self._submit(number, batch)
                submitted += 1

        draw()
        while self._queue or self._running:
            number, result = self._next_result()
            finished[number] = result
            done += 1
            draw()  # before whoever gets the results takes his time
            if progress is not None:
                progress(done, total)
            while following in finished:
                yield finished.pop(following)
                following += 1
            draw()

    def _submit(self, number: int, batch: Any) -> None:
        self._queue.append(_Task(number, batch))
        self._fill()

    def _next_result(self) -> tuple[int, Any]:
        """Wait for any batch; one that lost its actor, or its result, is begun again elsewhere."""
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
            except _LOSSES:
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
        """End all actors, also those that never started, and forget what they were working on."""
        actors = [*self._load, *self._starting.values()]
        for things in (self._queue, self._starting, self._load, self._running):
            things.clear()
        self._job = None
        self._lost_starts = 0
        _end(actors)

    def withdraw(self) -> None:
        """No longer ask for the actors that have not started: until there is work again, a cluster need not grow."""
        actors = list(self._starting.values())
        self._starting.clear()
        _end(actors)

    def _greet(self, ready: Any) -> None:
        actor = self._starting.pop(ready)
        try:
            ray.get(ready)
        except _LOSSES:
            self._lost_starts += 1
            self._fill()
            if not self._load and not self._starting:
                raise
            return
        self._lost_starts = 0
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
            self._running[task.actor.apply.remote(self._job, task.batch)] = task
        size = min(self.size, self.size + _MOST_LOSSES - self._lost_starts)
        while len(self._load) + len(self._starting) < size and len(self._starting) < len(self._queue):
            actor = self._class.remote(self._hide_gpus)
            self._starting[actor.ready.remote()] = actor


def _end(actors: Iterable[Any]) -> None:
    """Kill actors, which may have gone with their cluster: without one, `ray.kill` would start a Ray of its own."""
    if not ray.is_initialized():
        return
    for actor in actors:
        with suppress(ActorHandleNotFoundError):
            ray.kill(actor)


def _as_it_is(function: Callable[[Batch], Result]) -> Callable[[Batch], Result]:
    return function


def stream_rows(
    filesystem: fs.FileSystem,
    folder: str,
    rows_a_block: int,
    transform: "Callable[[Dataset], Dataset]",
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
    # Here and below: Ray Data takes seconds to import, which the actors of other stages need not wait for.
    from ray.data import DataContext, read_parquet

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
    from ray.data import ActorPoolStrategy

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
    """A handle to a new `ProgressBoard` actor, which takes no CPU slot.

    It lives on the driver's own node, and does not go with one that others work on.
    """
    # Not soft: Ray would avoid a head without CPUs.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(ProgressBoard).remote()


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
