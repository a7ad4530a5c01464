"""The pool of actors on real Ray."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray.cloudpickle import register_pickle_by_value
from ray.exceptions import RayActorError

from genret.cluster import ActorPool, _Worker, connected, map_batches
from genret.config import ComputeConfig
from genret.errors import InputError

# Actors cannot import a test module: its functions travel with what refers to them.
register_pickle_by_value(sys.modules[__name__])


def make_adder(amount: int) -> Callable[[list[int]], list[int]]:
    return lambda batch: [number + amount for number in batch]


def make_squarer() -> Callable[[int], int]:
    return lambda number: number * number


def make_dying(marker: str) -> Callable[[int], int]:
    """Kills its own process at number 3, the first time (or always, where the marker cannot be made)."""

    def apply(number: int) -> int:
        if number == 3 and not Path(marker).exists():
            if Path(marker).parent.exists():
                Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number

    return apply


def make_waiting(marker: str) -> Callable[[int], int]:
    """Number 0 waits until there is a marker."""

    def apply(number: int) -> int:
        while number == 0 and not Path(marker).exists():
            time.sleep(0.01)
        return number

    return apply


def make_adder_of_one(amount: int) -> Callable[[int], int]:
    return lambda number: number + amount


def make_refusing(name: str) -> Callable[[int], int]:
    raise InputError(f"{name}: expected something else")


class DyingWorker(_Worker):
    """Dies while it starts, the first time (or always, where the marker cannot be made)."""

    marker: Path

    def __init__(self, hide_gpus: bool) -> None:
        if not self.marker.exists():
            if self.marker.parent.exists():
                self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        _Worker.__init__(self, hide_gpus)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connected(ComputeConfig()):
        yield


@pytest.mark.parametrize("workers", [1, 3])
def test_results_keep_the_order_of_the_batches(cluster: None, workers: int) -> None:
    batches = [[number, number + 1] for number in range(20)]
    seen = []
    compute = ComputeConfig(cpu_workers=workers, cpus_a_worker=0.5)
    found = map_batches(
        iter(batches), 20, make_adder, {"amount": 10}, compute, progress=lambda done, total: seen.append((done, total))
    )
    assert list(found) == [[first + 10, second + 10] for first, second in batches]
    assert seen == [(done, 20) for done in range(1, 21)]


def test_actors_that_find_no_room_are_not_waited_for(cluster: None) -> None:
    """Ten actors of one CPU each on a cluster that has fewer: those that run do all the work."""
    compute = ComputeConfig(cpu_workers=10, cpus_a_worker=1.0)
    assert list(map_batches(range(30), 30, make_squarer, {}, compute)) == [n * n for n in range(30)]


def test_nothing_to_do_starts_nothing(cluster: None) -> None:
    assert list(map_batches([], 0, make_adder, {"amount": 1}, ComputeConfig())) == []


def process_of(number: int) -> int:
    return os.getpid()


def refuse_odd(number: int) -> int:
    if number % 2:
        raise InputError(f"{number}: expected an even number")
    return number


@pytest.fixture
def pool(cluster: None) -> Iterator[ActorPool]:
    pool = ActorPool(ComputeConfig(cpu_workers=2, cpus_a_worker=0.5))
    yield pool
    pool.close()


def test_actors_stay_for_one_function_after_another_until_the_pool_is_closed(pool: ActorPool) -> None:
    first = set(pool.apply(process_of, range(20)))
    assert list(pool.map(range(9), 9, make_adder_of_one, {"amount": 1})) == list(range(1, 10))
    assert 1 <= len(first) <= 2 and os.getpid() not in first
    assert len(first | set(pool.apply(process_of, range(20)))) <= 2
    pool.close()
    pool.close()
    assert not first & set(pool.apply(process_of, range(20)))


def test_a_pool_that_was_left_in_the_middle_works_again_with_other_actors(pool: ActorPool) -> None:
    left = pool.apply(process_of, range(20))
    first = next(left)
    left.close()
    assert not pool.started
    assert list(pool.apply(refuse_odd, range(0, 20, 2))) == list(range(0, 20, 2))
    assert first not in set(pool.apply(process_of, range(20)))


def test_a_pool_that_failed_works_again(pool: ActorPool) -> None:
    with pytest.raises(InputError, match=r"\d: expected an even number"):
        list(pool.apply(refuse_odd, range(20)))
    assert list(pool.apply(refuse_odd, range(0, 20, 2))) == list(range(0, 20, 2))


def test_two_functions_at_once_are_refused_and_do_no_harm(pool: ActorPool) -> None:
    first = pool.apply(refuse_odd, range(0, 20, 2))
    assert next(first) == 0
    with pytest.raises(RuntimeError, match="one function after another"):
        next(pool.apply(process_of, range(20)))
    assert list(first) == list(range(2, 20, 2))


def test_an_actor_that_died_between_two_functions_is_replaced(pool: ActorPool) -> None:
    first = set(pool.apply(process_of, range(20)))
    for process in first:
        os.kill(process, signal.SIGKILL)
    assert not first & set(pool.apply(process_of, range(20)))


def test_actors_that_find_no_room_are_no_longer_asked_for(cluster: None) -> None:
    pool = ActorPool(ComputeConfig(cpu_workers=3 * (os.cpu_count() or 1), cpus_a_worker=1.0))
    assert list(pool.apply(refuse_odd, range(0, 100, 2))) == list(range(0, 100, 2))
    assert waiting_actors()
    pool.withdraw()
    deadline = time.monotonic() + 30
    while waiting_actors():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert list(pool.apply(refuse_odd, range(0, 100, 2))) == list(range(0, 100, 2))
    pool.close()


def waiting_actors() -> list[str]:
    actors = ray._private.state.actors().items()
    return [name for name, actor in actors if actor["State"] in ("DEPENDENCIES_UNREADY", "PENDING_CREATION")]


def test_a_batch_whose_actor_is_killed_is_done_by_another(cluster: None, tmp_path: Path) -> None:
    compute = ComputeConfig(cpu_workers=2, cpus_a_worker=0.5)
    arguments = {"marker": str(tmp_path / "died")}
    assert list(map_batches(range(8), 8, make_dying, arguments, compute)) == [n * n for n in range(8)]
    assert (tmp_path / "died").exists()


def test_a_batch_that_always_kills_its_actor_is_an_error(cluster: None, tmp_path: Path) -> None:
    arguments = {"marker": str(tmp_path / "no" / "folder")}
    with pytest.raises(RayActorError):
        list(map_batches(range(8), 8, make_dying, arguments, ComputeConfig(cpu_workers=2, cpus_a_worker=0.5)))


def dying_pool(marker: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> ActorPool:
    monkeypatch.setattr("genret.cluster._Worker", type("DyingWorker", (DyingWorker,), {"marker": marker}))
    return ActorPool(ComputeConfig(cpu_workers=workers, cpus_a_worker=0.5))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_actor_that_dies_while_it_starts_is_replaced(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    pool = dying_pool(tmp_path / "died", workers, monkeypatch)
    assert list(pool.map(range(8), 8, make_squarer, {})) == [n * n for n in range(8)]
    assert (tmp_path / "died").exists()
    pool.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_actors_that_always_die_while_they_start_are_an_error(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    pool = dying_pool(tmp_path / "no" / "folder", workers, monkeypatch)
    with pytest.raises(RayActorError):
        list(pool.map(range(8), 8, make_squarer, {}))


def test_few_results_wait_for_the_first(pool: ActorPool, tmp_path: Path) -> None:
    """While it is worked on, so is what is near to it, and no more."""
    marker, drawn, ahead = tmp_path / "go on", [], []

    def draw() -> Iterator[int]:
        for number in range(201):
            drawn.append(number)
            yield number

    def progress(done: int, total: int) -> None:
        if done == 14:  # all that is begun, but for two batches of the actor that waits
            ahead.append(len(drawn))
            marker.touch()

    assert list(pool.map(draw(), 201, make_waiting, {"marker": str(marker)}, progress)) == list(range(201))
    assert ahead == [16]


def test_a_pool_may_be_closed_when_its_cluster_is_gone() -> None:
    """In a process of its own: a cluster that is started must not be that of the other tests."""
    code = (
        "import ray\n"
        "from genret.cluster import ActorPool, connected\n"
        "from genret.config import ComputeConfig\n"
        "pool = ActorPool(ComputeConfig(cpu_workers=2, cpus_a_worker=0.5))\n"
        "with connected(ComputeConfig()):\n"
        "    results = pool.apply(str, range(20))\n"
        "    print(next(results))\n"
        "pool.close()\n"
        "assert not ray.is_initialized()\n"
        "print('closed')\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert result.stdout.split() == ["0", "closed"], result.stderr


def test_a_mistake_of_the_user_arrives_as_it_was_raised(cluster: None) -> None:
    with pytest.raises(InputError, match=r"^corpus: expected something else$"):
        list(map_batches(range(8), 8, make_refusing, {"name": "corpus"}, ComputeConfig()))


def test_what_the_cluster_can_never_hold_is_refused(cluster: None) -> None:
    refusal = r"compute: a worker .* asks for 1 x \(1 CPU, 1 GPU\), .*room for 0"
    with pytest.raises(InputError, match=refusal), connected(ComputeConfig(gpus_a_worker=1)):
        raise AssertionError("must not be reached")
