"""Clusters of several nodes on one machine: nodes that are killed under a run, and nodes that come and go."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from ray.cloudpickle import register_pickle_by_value
from ray.cluster_utils import AutoscalingCluster, Cluster
from service import free_port

from genret.cluster import ActorPool, connected, map_batches, start_board
from genret.config import ComputeConfig, HttpConfig, load_config
from genret.errors import InputError
from genret.llm.http import HttpSender
from genret.pipeline import run
from genret.runs import RunStore, StageRecord

# Actors cannot import a test module: its functions travel with what refers to them.
register_pickle_by_value(sys.modules[__name__])
CLOCKS = {
    "training_log": ["seconds", "tokens_a_second", "mfu", "memory_gib"],
    "validation_log": ["seconds"],
    "latencies": ["seconds", "milliseconds_a_query"],
}


class Killer:
    """Kills, once in each of some stages, a node that works for it, as soon as the stage tells of its progress."""

    def __init__(self, cluster: Cluster, stages: set[str]) -> None:
        self._cluster = cluster
        self._stages = set(stages)
        self.killed: dict[str, str] = {}

    def stage_started(self, stage: str) -> None: ...

    def progress(self, stage: str, done: int, total: int, unit: str, note: str) -> None:
        if stage not in self._stages or done >= total:
            return
        busy = {name: free.get("CPU", 0.0) for name, free in ray._private.state.available_resources_per_node().items()}
        for node in list(self._cluster.worker_nodes):
            if busy.get(node.node_id, 2.0) < 2.0:
                self._stages.remove(stage)
                self.killed[stage] = node.node_id
                self._cluster.remove_node(node, allow_graceful=False)
                return

    def stage_finished(self, record: object, reused: bool) -> None: ...


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that takes no work, and four nodes with two CPUs each."""
    made = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "dashboard_agent_listen_port": free_port(),
            "include_dashboard": False,
            "_system_config": {"health_check_period_ms": 1000, "health_check_failure_threshold": 5},
        },
    )
    try:
        for _ in range(4):
            made.add_node(num_cpus=2)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def tables(store: RunStore, records: dict[str, StageRecord]) -> dict[tuple[str, str], pa.Table]:
    return {
        (stage, name): store.read_table(record, name).drop_columns(CLOCKS.get(name, []))
        for stage, record in records.items()
        for name in record.tables
    }


@pytest.mark.slow
def test_nodes_killed_during_synthesis_training_and_mining_change_no_table_and_no_weight(
    cluster: Cluster, tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small enough that there is work left when the node goes.
    monkeypatch.setattr("genret.parts.rows_a_part", lambda rows: 4)
    monkeypatch.setattr("genret.stages.training._MINING_BATCH", 8)
    settings = [*tiny_settings, "sft.epochs=12", "compute.max_failures=3", f"compute.address={cluster.address}"]
    config = load_config("scratch-semantic", settings)
    stores = [RunStore(tmp_path / name) for name in ("undisturbed", "disturbed")]
    undisturbed = run(config, stores[0], Killer(cluster, set()), until="mining")
    killer = Killer(cluster, {"synthesis", "sft", "mining"})
    disturbed = run(config, stores[1], killer, until="mining")
    assert set(killer.killed) == {"synthesis", "sft", "mining"}
    assert len(set(killer.killed.values())) == 3
    expected, found = tables(stores[0], undisturbed), tables(stores[1], disturbed)
    assert expected.keys() == found.keys()
    for key, table in expected.items():
        assert found[key].equals(table), f"{key} differs"
    weights = [
        {path.name: path.read_bytes() for path in store.local_folder(records["sft"], "sft").rglob("*.safetensors")}
        for store, records in zip(stores, (undisturbed, disturbed), strict=True)
    ]
    assert weights[0] and weights[0] == weights[1]


@pytest.mark.slow
def test_progress_is_kept_on_the_node_of_the_driver(cluster: Cluster) -> None:
    ray.init(address=cluster.address, log_to_driver=False)
    boards = [start_board() for _ in range(5)]
    assert [ray.get(board.read.remote()) for board in boards] == [(0, 0, {})] * 5
    own = ray.get_runtime_context().get_node_id()
    assert {ray._private.state.actors(board._actor_id.hex())["Address"]["NodeID"] for board in boards} == {own}


@pytest.mark.slow
def test_results_that_were_lost_with_their_node_are_made_again(cluster: Cluster) -> None:
    compute = ComputeConfig(address=cluster.address, cpu_workers=2, cpus_a_worker=2)
    with connected(compute):
        pool = ActorPool(compute)
        results = pool.map(range(12), 12, make_large, {})
        found = [next(results)]
        done = list(pool._running)
        ray.wait(done, num_returns=len(done), fetch_local=False)
        theirs = {ray._private.state.actors(actor._actor_id.hex())["Address"]["NodeID"] for actor in pool._load}
        for node in [node for node in cluster.worker_nodes if node.node_id in theirs]:
            cluster.remove_node(node, allow_graceful=False)
        assert [*found, *results] == [bytes([number]) * 1_000_000 for number in range(12)]
        pool.close()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="no path that differs from process to process")
def test_a_folder_that_not_all_nodes_share_is_told_before_anything_is_asked(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genret.llm.sharing._PATIENCE_SECONDS", 1.0)
    monkeypatch.chdir(tmp_path)  # where the nodes are not
    sender = HttpSender(HttpConfig(base_url="http://127.0.0.1:1/v1", model="none"), 0, ComputeConfig())
    with connected(ComputeConfig(address=cluster.address)):
        own = sender.send(str(tmp_path), "/proc/self/cwd/completions", "session", proven=False)
        with pytest.raises(InputError, match=r"^run: expected a folder that all 5 nodes share .* 5 of them do not see"):
            next(own)
        shared = sender.send(str(tmp_path), str(tmp_path / "completions"), "session", proven=False)
        with pytest.raises(InputError, match=r"^llm\.base_url: expected a server"):
            next(shared)
    assert not list((tmp_path / "completions").iterdir())


class OwnAutoscalingCluster(AutoscalingCluster):
    """Ray's own one ends every Ray on the machine and takes fixed ports; this one touches only what it started."""

    def _generate_config(self, head_resources: dict, worker_node_types: dict, **_: Any) -> dict[str, Any]:
        self.port = free_port()
        # By this name the provider knows a head; by another one, the autoscaler would start one every second.
        head = "ray.head.default"
        kinds = worker_node_types | {head: {"resources": head_resources, "node_config": {}, "max_workers": 0}}
        address = f"127.0.0.1:{self.port}"
        return {
            "cluster_name": "fake",
            "max_workers": 4,
            "upscaling_speed": 4,
            "idle_timeout_minutes": 0.05,
            # All nodes have one address here: they are told apart by their ids.
            "provider": {
                "type": "fake_multinode",
                "gcs_address": address,
                "disable_node_updaters": True,
                "use_node_id_as_ip": True,
            },
            "auth": {},
            "docker": {},
            "head_node_type": head,
            "available_node_types": kinds,
            "file_mounts": {},
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "initialization_commands": [],
            "setup_commands": [],
            "head_setup_commands": [],
            "worker_setup_commands": [],
            "head_start_ray_commands": [],
            "worker_start_ray_commands": [],
        }

    def begin(self, folder: Path) -> str:
        """Start the head; its address."""
        file = folder / "autoscaling.json"
        file.write_text(json.dumps(self._config))
        self._process = subprocess.Popen(
            [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--port", str(self.port),
             "--num-cpus", "0", "--node-ip-address", "127.0.0.1", "--include-dashboard", "false",
             "--dashboard-agent-listen-port", str(free_port()), f"--autoscaling-config={file}"],
            env=os.environ | {
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_FAKE_CLUSTER": "1",
                "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            },
            start_new_session=True, stdout=(folder / "head.log").open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.file = file
        return f"127.0.0.1:{self.port}"

    def end(self) -> None:
        """End the head and the nodes that it started."""
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait(timeout=60)


@pytest.fixture
def growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnAutoscalingCluster]:
    """A head without CPUs, and up to two nodes with two CPUs, as many as one worker takes."""
    made = OwnAutoscalingCluster(
        {"CPU": 0},
        {"worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2}},
    )
    made.address = made.begin(tmp_path)
    monkeypatch.setenv("RAY_CLUSTER_AUTOSCALES", str(made.file))
    try:
        yield made
    finally:
        ray.shutdown()
        made.end()


def working_nodes() -> int:
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, ray.nodes()
        time.sleep(0.5)


@pytest.mark.slow
def test_a_cluster_grows_from_nothing_to_what_the_pipeline_asks_for_and_back(
    growing: OwnAutoscalingCluster, tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genret.parts.rows_a_part", lambda rows: 4)
    most = 0

    class Watcher(Killer):
        def progress(self, stage: str, done: int, total: int, unit: str, note: str) -> None:
            nonlocal most
            most = max(most, working_nodes())

    compute = ["compute.cpu_workers=2", "compute.cpus_a_worker=2", f"compute.address={growing.address}"]
    config = load_config("scratch-semantic", [*tiny_settings, *compute])
    deadline = time.monotonic() + 60
    while True:
        try:
            ray.init(address=growing.address, log_to_driver=False)
            break
        except ConnectionError:
            assert time.monotonic() < deadline, (tmp_path / "head.log").read_text()
    assert working_nodes() == 0
    records = run(config, RunStore(tmp_path / "run"), Watcher(None, set()), until="synthesis")
    assert records["synthesis"].tables["queries"]["rows"] > 0
    assert most >= 1
    # Both workers wait for their own node, while there is work.
    with connected(config.compute):
        counts = [(result, working_nodes()) for result in map_batches(range(60), 60, make_sleeper, {}, config.compute)]
        assert [result for result, _ in counts] == list(range(60))
        assert max(count for _, count in counts) == 2
        wait_for(lambda: working_nodes() == 0, 90)


def make_large() -> Callable[[int], bytes]:
    """Results that Ray keeps where they were made."""
    return lambda number: bytes([number]) * 1_000_000


def make_sleeper() -> Callable[[int], int]:
    def sleep(number: int) -> int:
        time.sleep(0.5)
        return number

    return sleep
