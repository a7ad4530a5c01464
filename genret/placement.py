"""Whether a cluster can ever hold what a run asks for, node by node, and how to say so.

A node's CPUs count for what runs on it alone: eight nodes with four CPUs hold no actor of eight. Clusters that grow by
themselves count with the nodes that they may add.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, inf
from pathlib import Path
from typing import Any

import yaml

from genret.errors import InputError

Resources = Mapping[str, float]
"""Amounts by Ray's names: CPU, GPU, memory (bytes), any of one's own."""

# What Ray counts in units of 1/10000; the sum of ten tenths must fit into one.
_UNIT = 1e-4
_SHOWN = {"CPU": "CPU", "GPU": "GPU"}


@dataclass(frozen=True)
class Demand:
    """What some part of a run needs at the same time.

    Attributes:
        section: The section of the configuration that asks.
        purpose: What for, in a word or two.
        bundle: What one actor or worker gets. All of it comes from one node.
        count: How many of them there must be at least.
    """

    section: str
    purpose: str
    bundle: Resources
    count: int = 1


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of a kind that a cluster may add: its name, what one has, and how many there may be."""

    name: str
    resources: Resources
    most: int


@dataclass(frozen=True)
class Capacity:
    """What a cluster has, and what it may grow to.

    Attributes:
        nodes: Resources of each node that runs.
        groups: Kinds of nodes that it may add; counted with those of the kind that run already.
        most: Most nodes of all groups together.
        unknown: Whether it grows in a way that nobody told: nothing is impossible then.
    """

    nodes: Sequence[Resources]
    groups: Sequence[NodeGroup] = field(default_factory=tuple)
    most: float = inf
    unknown: bool = False

    def room(self, bundle: Resources) -> float:
        """How many bundles it can hold at once, when it is empty and as large as it gets."""
        if self.unknown:
            return inf
        now = sum(_times(node, bundle) for node in self.nodes)
        # The nodes that run may be of these groups: they are not counted on top.
        left, grown = self.most, 0.0
        for group in sorted(self.groups, key=lambda group: -_times(group.resources, bundle)):
            nodes = min(group.most, left)
            left -= nodes
            grown += nodes * _times(group.resources, bundle)
        return max(now, grown)

    def __str__(self) -> str:
        kinds: dict[str, int] = {}
        for node in self.nodes:
            kinds[describe(node)] = kinds.get(describe(node), 0) + 1
        has = ", ".join(f"{count} x ({kind})" for kind, count in kinds.items()) or "no node"
        if self.unknown:
            return f"the Ray cluster has {has} and may grow"
        if not self.groups:
            return f"the Ray cluster has {has}"
        grows = ", ".join(f"{group.most} x {group.name} ({describe(group.resources)})" for group in self.groups)
        return f"the Ray cluster has {has} and may grow to {grows}"


def check_demands(demands: Sequence[Demand], capacity: Capacity) -> None:
    """See that a cluster can hold each demand, at least when it has grown.

    Raises:
        InputError: It never can: names the section, what it asks for, and what there is.
    """
    for demand in demands:
        room = capacity.room(demand.bundle)
        if room < demand.count:
            raise InputError(
                f"{demand.section}: {demand.purpose} asks for {demand.count} x ({describe(demand.bundle)}), each on "
                f"one node, and {capacity}: room for {room:g}. Ask for less, or add nodes; on a cluster that grows by "
                "itself set RAY_CLUSTER_AUTOSCALES to its configuration file, or to 1"
            )


def describe(resources: Resources) -> str:
    """Resources in words: 4 CPU, 1 GPU; those of one's own after these two."""
    names = [name for name in _SHOWN if resources.get(name)]
    names += sorted(name for name in resources if name not in _SHOWN and ":" not in name and name not in _INTERNAL)
    return ", ".join(f"{resources[name]:g} {name}" for name in names) or "nothing"


_INTERNAL = {"memory", "object_store_memory"}


def _times(node: Resources, bundle: Resources) -> int:
    """How often a bundle fits into a node; a bundle that asks for nothing is counted a thousand times."""
    amounts = [(node.get(name, 0.0), amount) for name, amount in bundle.items() if amount > 0]
    return min((floor((has + _UNIT) / amount) for has, amount in amounts), default=1000)


def read_growth(setting: str) -> tuple[tuple[NodeGroup, ...], float, bool]:
    """What RAY_CLUSTER_AUTOSCALES says.

    Args:
        setting: Empty or 0: the cluster does not grow. 1: it does, nobody knows how far. A path: of the cluster
            launcher's file (`cluster.yaml`, on a head `~/ray_bootstrap_config.yaml`). Else a YAML mapping with
            `available_node_types` as in that file.

    Returns:
        The kinds of nodes, the most nodes of all kinds together, and whether the limits are unknown.

    Raises:
        InputError: It says none of these.
    """
    setting = setting.strip()
    if setting in ("", "0"):
        return (), inf, False
    if setting == "1":
        return (), inf, True
    text, source = setting, "RAY_CLUSTER_AUTOSCALES"
    if not setting.startswith("{"):
        path = Path(setting).expanduser()
        source = f"RAY_CLUSTER_AUTOSCALES ({path})"
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"{source}: expected 1, or a cluster launcher's file; cannot be read: {error}") from error
    try:
        groups, most = node_groups(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{source}: expected a cluster launcher's configuration, found none ({error})") from error
    return groups, most, False


def node_groups(cluster: Any) -> tuple[tuple[NodeGroup, ...], float]:
    """The kinds of nodes in a cluster launcher's configuration, the head among them, and the most workers.

    Args:
        cluster: The configuration, as YAML has it.

    Raises:
        ValueError: It has no kinds of nodes.
    """
    kinds = cluster.get("available_node_types") if isinstance(cluster, Mapping) else None
    if not isinstance(kinds, Mapping) or not all(isinstance(kind, Mapping) for kind in kinds.values()):
        raise ValueError("no mapping available_node_types")
    head = cluster.get("head_node_type")
    most = cluster.get("max_workers", inf)
    groups = [
        NodeGroup(
            str(name),
            {key: float(value) for key, value in (kind.get("resources") or {}).items()},
            1 if name == head else int(kind.get("max_workers", most if most != inf else 0)),
        )
        for name, kind in kinds.items()
    ]
    return tuple(groups), most + (1 if head in kinds else 0)
