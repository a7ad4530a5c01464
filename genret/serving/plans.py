"""What replicas tell the one that leads them, and what it tells them."""

from dataclasses import dataclass

from genret.config import ServingConfig
from genret.serving.keys import SealedKeys
from genret.serving.metrics import Family
from genret.serving.versions import Change, Version

POLL_SECONDS = 2.0
"""How long a replica waits for news before it asks again."""
GONE_SECONDS = 15.0
"""After what silence a replica counts as gone."""


@dataclass(frozen=True)
class Setup:
    """What every replica is told.

    Attributes:
        run_url: The run.
        config: The `serving` section.
        service: A name that no other start of a service has.
        keys: Those that requests must show. Where one is not set, or there are none, that in the environment of the
            process that takes requests counts.
    """

    run_url: str
    config: ServingConfig
    service: str
    keys: SealedKeys | None = None


@dataclass(frozen=True)
class Report:
    """What a replica says of itself.

    Attributes:
        member: Its id.
        name: The retriever's name, or "" of an ingress.
        revision: The plan that it follows.
        active: The version that it answers from.
        loaded: The mark of what it has loaded, by version.
        failed: Why it could not load a version with its changes, by the mark of these.
        families: Its counters.
    """

    member: str
    name: str
    revision: int
    active: str
    loaded: dict[str, str]
    failed: dict[str, str]
    families: tuple[Family, ...] = ()


@dataclass(frozen=True)
class Edition:
    """A version with its changes, to have loaded.

    Attributes:
        version: The version.
        mark: Stands for it with all its changes (`versions.mark_after`).
        anew: Whether `changes` are all of them; what the replica has of others it shall leave.
        changes: Those that the replica lacks, in order.
    """

    version: Version
    mark: str
    anew: bool
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Plan:
    """What replicas shall do.

    Attributes:
        revision: Grows with every change of the rest.
        active: The version to answer from.
        previous: The one before, if there is a way back.
        editions: What to have loaded.
        replicas: Replicas that follow, by retriever.
    """

    revision: int
    active: str
    previous: str | None
    editions: tuple[Edition, ...]
    replicas: dict[str, int]
