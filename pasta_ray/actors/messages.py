"""What crosses an actor's boundary beside `engine.messages`: how a cluster is made, and how it is doing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal, Protocol

from pasta_ray.engine.messages import BodyNews, BodyRequest, Counters, Events, Request
from pasta_ray.errors import InputError, PastaError, ReplicaError
from pasta_ray.logs import LogConfig

if TYPE_CHECKING:
    from pasta_ray.engine.decoder import Decoder


Policy = Literal["auto", "local", "remote"]


class StepError(PastaError):
    """A decode step failed by a fault of ours; the requests that were in flight are lost, the replica goes on."""


class ReplicaDiedError(ReplicaError):
    """A replica's process ended, or was restarted, while it was asked for something."""


class DecoderLike(Protocol):
    """What the decode loop needs of `pasta_ray.engine.decoder.Decoder`."""

    @property
    def busy(self) -> bool: ...
    @property
    def num_slots(self) -> int: ...
    @property
    def num_branches(self) -> int: ...
    @property
    def num_requests(self) -> int: ...
    @property
    def counters(self) -> Counters: ...
    @property
    def parts(self) -> "Mapping[str, Decoder]":
        """What other replicas may share with this one, by model; a single decoder answers to any name."""

    def submit(self, request: Request | BodyRequest) -> None: ...
    def receive(self, request_id: str, path: str, news: BodyNews | None) -> None: ...
    def cancel(self, request_id: str) -> None: ...
    def step(self) -> list[Events]: ...


DecoderFactory = Callable[[str], DecoderLike]
"""Called once in a replica's own process, with the replica's name."""


@dataclass(frozen=True)
class ClusterSpec:
    """The replicas to start and the load to accept: above ``max_ongoing`` requests wait, above ``max_queued`` fail.

    A request whose replica dies is opened again, up to ``max_deaths`` times in a row without a step between, and waits
    up to ``wait_s`` for a replica that is ready. A replica that no coordinator has asked for anything for ``orphan_s``
    ends itself. ``placement`` says which bodies may be decoded on other replicas than their requests.

    With ``max_replicas`` there are so many at most: more than ``replicas`` once load has asked for them for
    ``scale_up_s``, fewer again once it has not for ``scale_down_s``. A replica that is to end gets nothing new, and
    keeps what it has for up to ``drain_s``.

    Of several ``coordinators`` each lets an equal share of the load in.
    """

    make_decoder: DecoderFactory
    replicas: int = 1
    max_replicas: int | None = None
    coordinators: int = 1
    cpus_per_replica: float = 1.0
    gpus_per_replica: float = 0.0
    max_ongoing: int = 64
    max_queued: int = 256
    check_period_s: float = 2.0
    max_deaths: int = 5
    wait_s: float = 120.0
    orphan_s: float = 60.0
    scale_up_s: float = 10.0
    scale_down_s: float = 120.0
    drain_s: float = 60.0
    placement: Policy = "auto"
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        leasts = {"replicas": 1, "coordinators": 1, "max_ongoing": 1, "max_queued": 0, "max_deaths": 0}
        for name, least in leasts.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; allowed: {least} or more")
        if self.most_replicas < self.replicas:
            raise InputError(f"max_replicas is {self.max_replicas}; allowed: replicas, {self.replicas}, or more")

    @property
    def most_replicas(self) -> int:
        return self.replicas if self.max_replicas is None else self.max_replicas


@dataclass(frozen=True)
class SharingStats:
    """What a replica has done since its process began, counted: prefixes fetched from other replicas with their tokens
    and bytes, failures and those not worth it; bodies sent away, lost there, decoded for others, and made to wait, with
    the bytes of KV that went and came back. ``num_peers`` are the replicas that it shares with now."""

    num_peers: int = 0
    num_prefix_fetches: int = 0
    num_prefix_tokens_fetched: int = 0
    num_prefix_bytes_fetched: int = 0
    num_prefix_fetches_failed: int = 0
    num_prefix_fetches_declined: int = 0
    num_bodies_sent: int = 0
    num_bodies_lost: int = 0
    num_bodies_hosted: int = 0
    num_bodies_delayed: int = 0
    num_body_bytes_sent: int = 0
    num_body_bytes_returned: int = 0


@dataclass(frozen=True)
class ReplicaStats:
    """Live counts of one replica, all 0 when it is idle; and how many requests it has given up since its process began
    because their reader left. ``step_s`` is the time spent in steps since then, ``one_row_step_s`` that of the latest
    step of a single row, 0 before there was one. ``curve`` are (rows, seconds) points of what a step costs, and
    ``max_kv_bytes`` is the bound of its requests' KV, nothing where it has none; a token takes ``kv_bytes_per_token``.
    One that is ``draining`` has been told so.
    """

    replica: str
    num_requests: int
    num_branches: int
    num_slots: int
    num_cancelled: int = 0
    counters: Counters = field(default_factory=Counters)
    step_s: float = 0.0
    one_row_step_s: float = 0.0
    sharing: SharingStats = field(default_factory=SharingStats)
    curve: tuple[tuple[int, float], ...] = ()
    max_kv_bytes: int | None = None
    kv_bytes_per_token: int = 0
    draining: bool = False


@dataclass(frozen=True)
class CoordinatorStats:
    """Requests: live counts, and since the coordinator's process began those that came, that ended with their report,
    that their reader left, how often one was opened again because what answered it had died, and those refused because
    the queue was full. And replicas: those that take requests, that are draining, and that were added and removed as
    load rose and fell."""

    num_ongoing: int
    num_queued: int
    num_requests: int
    num_finished: int
    num_cancelled: int
    num_recoveries: int
    num_rejected: int = 0
    num_ready: int = 0
    num_draining: int = 0
    num_added: int = 0
    num_removed: int = 0


OF_REPLICAS = ("num_ready", "num_draining", "num_added", "num_removed")


def total(parts: Sequence[CoordinatorStats]) -> CoordinatorStats:
    """Of a cluster's coordinators: each has its own requests, and all have the replicas, which the first one tells."""
    names = [field.name for field in fields(CoordinatorStats) if field.name not in OF_REPLICAS]
    return replace(parts[0], **{name: sum(getattr(part, name) for part in parts) for name in names})


ReplicaState = Literal["starting", "ready", "draining", "failed"]


@dataclass(frozen=True)
class ReplicaHealth:
    """``failed`` replicas never come back by themselves (their weights cannot be loaded); ``error`` says why.
    ``draining`` ones end once what they have is answered."""

    name: str
    state: ReplicaState
    num_branches: int
    error: str | None = None


@dataclass(frozen=True)
class ClusterHealth:
    """One entry a replica."""

    replicas: tuple[ReplicaHealth, ...]

    @property
    def ready(self) -> bool:
        return any(replica.state == "ready" for replica in self.replicas)

    @property
    def failed(self) -> bool:
        return bool(self.replicas) and all(replica.state == "failed" for replica in self.replicas)

    def __str__(self) -> str:
        states = (f"{r.name} {r.state}" + (f" ({r.error})" if r.error else "") for r in self.replicas)
        return ", ".join(states)
