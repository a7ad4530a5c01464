"""What replicas tell the one that leads them, and what it tells them."""

from dataclasses import dataclass

from genret.config import ServingConfig
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
    """

    run_url: str
    config: ServingConfig
    service: str


@dataclass(frozen=True)
class Report:
    """What a replica says of itself.

    Attributes:
        member: Its id.
        name: The retriever's name, or "" of an ingress.
        revision: The plan that it follows.
        active: The version that it answers from.
        loaded: Number of the last change by version.
        failed: Why it could not load a version, by version.
        families: Its counters.
    """

    member: str
    name: str
    revision: int
    active: str
    loaded: dict[str, int]
    failed: dict[str, str]
    families: tuple[Family, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What replicas shall do.

    Attributes:
        revision: Grows with every change of the rest.
        active: The version to answer from.
        previous: The one before, if there is a way back.
        editions: Versions to have loaded, each with its changes that the replica lacks.
        replicas: Replicas that follow, by retriever.
    """

    revision: int
    active: str
    previous: str | None
    editions: tuple[tuple[Version, tuple[Change, ...]], ...]
    replicas: dict[str, int]
