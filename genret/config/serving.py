"""The section of the service that answers over HTTP."""

from collections.abc import Iterator

from pydantic import Field, model_validator

from genret.config.section import Section, gpu_problems, refuse


class ReplicasConfig(Section):
    """How many processes answer, and what each of them gets."""

    min_replicas: int = Field(1, ge=1, le=1000)
    """Replicas that are always there."""
    max_replicas: int = Field(1, ge=1, le=1000)
    """Replicas under load; more than `min_replicas` lets Ray Serve add and remove some."""
    cpus: float = Field(0.0, ge=0.0, le=256.0)
    """CPUs that Ray sets aside for each; 0 shares what the machine has."""
    gpus: float = Field(0.0, ge=0.0, le=8.0)
    """GPUs of each: a part of one, or a whole number."""
    threads: int = Field(0, ge=0, le=256)
    """Threads of the model in each; 0: as many as its node has cores, less one for the ingress. That is right where one
    such replica shares the node with an ingress; where no ingress is on the node, name all its cores, and where several
    replicas share it, a part each."""
    batch_size: int = Field(32, ge=1, le=4096)
    """Most queries answered together. A replica that is idle waits for none."""

    @model_validator(mode="after")
    def _check_replicas(self) -> "ReplicasConfig":
        refuse(_replica_problems(self))
        return self


def _replica_problems(config: ReplicasConfig) -> Iterator[str]:
    if config.max_replicas < config.min_replicas:
        yield f"max_replicas: expected at least min_replicas ({config.min_replicas}), found {config.max_replicas}"
    yield from gpu_problems("gpus", config.gpus)


class ServingConfig(Section):
    """The service: where it listens, what it gives to each retriever, and its limits."""

    host: str = Field("127.0.0.1", min_length=1, pattern=r"^[0-9A-Za-z.:_-]+$")
    """Address to listen at. Any other than this machine's own makes the service public. At its own, without an API key,
    the `Host` of requests must be this one, localhost, 127.0.0.1 or [::1]; others are answered with 421."""
    port: int = Field(8000, ge=1, le=65535)
    """Port to listen at."""
    tls_certificate: str = ""
    """File with the certificate (PEM) for HTTPS; empty: HTTP."""
    tls_key: str = ""
    """File with the certificate's key (PEM)."""
    retrievers: tuple[str, ...] = ()
    """The run's retrievers to serve; none: all of them."""
    generative: ReplicasConfig = ReplicasConfig(batch_size=64)
    """Replicas of each generative retriever."""
    bm25: ReplicasConfig = ReplicasConfig(batch_size=64)
    """Replicas of BM25."""
    dense: ReplicasConfig = ReplicasConfig(batch_size=64)
    """Replicas of the dense retriever."""
    fusion: ReplicasConfig = ReplicasConfig(batch_size=64)
    """Replicas of the fusion, which asks those of its parts."""
    ingress_replicas: int = Field(1, ge=1, le=1000)
    """Processes that take requests, check them and write answers; by `genret serve` they share its port. Where the only
    one dies, nobody listens for some seconds."""
    queue: int = Field(512, ge=1, le=1_000_000)
    """Queries that may wait for one retriever in one of these processes, or as many as a request may have if those are
    more; others are turned away with 429."""
    max_requests: int = Field(1024, ge=1, le=1_000_000)
    """Requests that may be open in one of these processes; more are turned away with 503."""
    max_k: int = Field(100, ge=1, le=1000)
    """Most passages a query."""
    max_queries: int = Field(64, ge=1, le=4096)
    """Most queries a request."""
    max_query_characters: int = Field(4000, ge=1, le=1_000_000)
    """Longest query."""
    max_body_bytes: int = Field(1 << 20, ge=1024, le=1 << 30)
    """Longest body of a request; a longer one is answered with 413."""
    header_seconds: float = Field(10.0, gt=0.0, le=3600.0)
    """How long the headers of a request may take to arrive at `genret serve`; a slower client is answered with 408 and
    closed out, one that sends nothing is closed out."""
    body_seconds: float = Field(10.0, gt=0.0, le=3600.0)
    """How long the body of a request may take to arrive; a slower one is answered with 408."""
    timeout_seconds: float = Field(10.0, gt=0.0, le=3600.0)
    """Deadline of a request that names none."""
    max_timeout_seconds: float = Field(60.0, gt=0.0, le=3600.0)
    """Longest deadline that a request may name."""
    drain_seconds: float = Field(20.0, ge=0.0, le=3600.0)
    """How long a replica that stops may take over requests that it has begun."""
    api_key_variable: str = Field("GENRET_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable with the key that requests to /v1 must show; where it is not set they need none. It is that
    of `genret serve`, wherever its cluster is; by `serve deploy` that of the nodes."""
    admin_key_variable: str = Field("GENRET_ADMIN_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable with the key of /v1/admin, in place of the other one. Without either, nobody may."""
    log_queries: bool = False
    """Whether the log says what was asked. Queries may be personal: they are left out by default."""
    watch_seconds: float = Field(0.0, ge=0.0, le=86_400.0)
    """How often to look whether the run has new retrievers and to load them, as soon as it is through with them, and
    with their evaluation where those before were evaluated; 0: only when asked to."""
    probe_queries: int = Field(8, ge=1, le=1000)
    """Queries that a new version must answer before it takes over."""
    load_seconds: float = Field(600.0, gt=0.0, le=86_400.0)
    """How long all replicas together may take to load a new version before it is refused."""

    @property
    def places(self) -> int:
        """Queries that may wait for one retriever in one process: no request is larger than an empty queue."""
        return max(self.queue, self.max_queries)

    @model_validator(mode="after")
    def _check_together(self) -> "ServingConfig":
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_key: expected tls_certificate and tls_key together, found one of them")
        if self.timeout_seconds > self.max_timeout_seconds:
            raise ValueError(
                f"timeout_seconds: expected at most max_timeout_seconds ({self.max_timeout_seconds:g}), "
                f"found {self.timeout_seconds:g}"
            )
        return self
