"""Whether a cluster can ever hold what is asked for."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genret.cluster import compute_demands
from genret.config import ComputeConfig
from genret.errors import InputError
from genret.placement import Capacity, Demand, NodeGroup, check_demands, describe, node_groups, read_growth

GANG = Demand("compute", "training", {"CPU": 8.0, "GPU": 1.0}, 8)


def test_what_is_on_two_nodes_is_not_on_one():
    nodes = [{"CPU": 4.0}] * 8
    check_demands([Demand("compute", "workers", {"CPU": 4.0}, 8)], Capacity(nodes))
    with pytest.raises(
        InputError,
        match=r"compute: a worker asks for 1 x \(8 CPU\), each on one node, and the Ray "
        r"cluster has 8 x \(4 CPU\): room for 0",
    ):
        check_demands([Demand("compute", "a worker", {"CPU": 8.0})], Capacity(nodes))


def test_a_gang_needs_room_for_all_of_it_at_once():
    seven = Capacity([{"CPU": 96.0, "GPU": 4.0}, {"CPU": 96.0, "GPU": 3.0}])
    with pytest.raises(InputError, match=r"8 x \(8 CPU, 1 GPU\).*room for 7"):
        check_demands([GANG], seven)
    check_demands([GANG], Capacity([{"CPU": 96.0, "GPU": 8.0}]))


def test_training_that_may_shrink_needs_room_for_the_fewest_workers():
    compute = ComputeConfig(training_workers=4, min_training_workers=2, cpus_a_training_worker=2.0)
    check_demands(compute_demands(compute), Capacity([{"CPU": 4.0}]))
    with pytest.raises(InputError, match=r"training \(min_training_workers\) asks for 2 x \(2 CPU\).*room for 1"):
        check_demands(compute_demands(compute), Capacity([{"CPU": 3.0}]))
    with pytest.raises(InputError, match=r"training \(training_workers\) asks for 4 x \(2 CPU\).*room for 2"):
        check_demands(compute_demands(compute.model_copy(update={"min_training_workers": 0})), Capacity([{"CPU": 4.0}]))


def test_what_the_cluster_may_grow_to_counts():
    head = [{"CPU": 0.0}]
    grows = Capacity(head, (NodeGroup("a100", {"CPU": 96.0, "GPU": 8.0}, 1),), 4)
    check_demands([GANG], grows)
    with pytest.raises(InputError, match=r"may grow to 1 x a100 \(96 CPU, 8 GPU\): room for 8"):
        check_demands([Demand("llm", "replicas", {"GPU": 1.0}, 9)], grows)
    check_demands([Demand("llm", "replicas", {"GPU": 1.0}, 9)], Capacity(head, unknown=True))


def test_all_kinds_together_keep_to_the_most_workers():
    groups = (NodeGroup("small", {"CPU": 2.0}, 10), NodeGroup("large", {"CPU": 16.0}, 2))
    assert Capacity([], groups, 3).room({"CPU": 2.0}) == 2 * 8 + 1
    assert Capacity([], groups, 3).room({"CPU": 16.0}) == 2


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 64.0), max_size=5), st.floats(0.1, 16.0))
def test_room_is_what_a_count_by_hand_finds(cpus: list[float], asked: float):
    expected = 0
    for has in cpus:
        while has - asked > -1e-4:
            has -= asked
            expected += 1
    assert Capacity([{"CPU": has} for has in cpus]).room({"CPU": asked}) == pytest.approx(expected, abs=len(cpus))


def test_ten_tenths_fit_into_one():
    assert Capacity([{"CPU": 1.0}]).room({"CPU": 0.1}) == 10


def test_growth_is_read_from_a_launchers_file_or_from_the_variable(tmp_path: Path):
    text = (
        "{max_workers: 4, head_node_type: h, available_node_types: {h: {resources: {CPU: 0}}, "
        "g: {max_workers: 2, resources: {CPU: 96, GPU: 8}}, c: {resources: {CPU: 32}}}}"
    )
    groups, most, unknown = read_growth(text)
    assert [(group.name, group.most) for group in groups] == [("h", 1), ("g", 2), ("c", 4)]
    assert (most, unknown) == (5, False)
    (tmp_path / "cluster.yaml").write_text(text)
    assert read_growth(str(tmp_path / "cluster.yaml")) == (groups, most, unknown)
    assert read_growth("") == ((), float("inf"), False)
    assert read_growth("1") == ((), float("inf"), True)


@pytest.mark.parametrize("setting", ["/no/such/file", "{}", "{available_node_types: 3}", "{a: [}"])
def test_growth_that_says_nothing_is_an_error_that_names_the_variable(setting: str):
    with pytest.raises(InputError, match="RAY_CLUSTER_AUTOSCALES"):
        read_growth(setting)


def test_the_projects_cluster_file_has_kinds_of_nodes():
    import yaml

    cluster = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text())
    groups, most = node_groups(cluster)
    assert Capacity([{"CPU": 0.0}], groups, most).room(GANG.bundle) >= 8


def test_resources_in_words():
    assert describe({"GPU": 1.0, "CPU": 0.5, "memory": 3.0, "node:1.2.3.4": 1.0, "tpu": 2.0}) == "0.5 CPU, 1 GPU, 2 tpu"
    assert describe({}) == "nothing"
