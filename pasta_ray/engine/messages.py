"""What goes into a decode and what comes out of it: the values that cross process boundaries, and nothing else.

A branch is named by its path: the main branch is ``"0"``, its third body ``"0.3"``. The path is also what seeds the
branch's sampling, so a replay gives the same tokens.
"""

from dataclasses import dataclass, field, fields
from typing import Literal

from pasta_ray.engine.kv import KVBlock
from pasta_ray.engine.progress import Progress, Step
from pasta_ray.errors import InputError

MAIN_BRANCH = "0"
MAX_LOGPROBS = 20

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Sampling:
    """How a next token is chosen. ``temperature == 0`` is greedy. With ``logprobs`` the visible tokens come with their
    likelihoods, each beside those of so many likeliest ones; that changes no choice."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 2.0:
            raise InputError(f"temperature is {self.temperature}; allowed: 0 to 2")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p is {self.top_p}; allowed: above 0, up to 1")
        if not -(2**63) <= self.seed < 2**63:
            raise InputError("seed is beyond 64 bits; allowed: -2**63 to 2**63 - 1")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise InputError(f"logprobs is {self.logprobs}; allowed: 0 to {MAX_LOGPROBS}")


@dataclass(frozen=True)
class Request:
    """One prompt and how to answer it.

    ``max_tokens`` bounds the visible answer in tokens, all branches together. ``max_branches`` bounds the bodies that
    are decoded at the same time, ``max_promises`` the bodies of the whole answer. ``messages`` is the chat, as (role,
    content), that ``prompt_ids`` were made of, and empty for a plain completion. ``router``: before 'sot' splits the
    answer, the model is asked whether the question suits that. Without ``constrained``, 'pasta' masks no token that
    breaks the grammar: it counts them (``Parallel.num_violations``), and goes on. ``model`` chooses among the models of
    a replica that holds several by name; one that holds a single model does not read it. The answer ends before the
    first of the strings in ``stop`` that its text, read in document order, comes to. An answer that has been begun is
    gone on with from its ``progress``, and gives no event of that again. ``trace`` names in logs the call that the
    request belongs to.
    """

    id: str
    prompt_ids: tuple[int, ...]
    method: str = "pasta"
    max_tokens: int = 512
    max_branches: int = 16
    max_promises: int = 32
    sampling: Sampling = field(default_factory=Sampling)
    messages: tuple[tuple[str, str], ...] = ()
    router: bool = False
    constrained: bool = True
    model: str = ""
    stop: tuple[str, ...] = ()
    progress: Progress = field(default_factory=Progress)
    trace: str = ""

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise InputError("the prompt is empty; at least one token is needed")
        for name in ("max_tokens", "max_branches", "max_promises"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        if not all(self.stop):
            raise InputError("stop holds an empty string; allowed: strings of one character or more")
        if self.router and self.method != "sot":
            raise InputError(f"router goes with method 'sot', not with {self.method!r}")
        if not self.constrained and self.method != "pasta":
            raise InputError(f"decoding without the constraint goes with method 'pasta', not with {self.method!r}")
        if self.sampling.logprobs is not None and (self.method == "sot" or not self.constrained):
            how = "method 'sot'" if self.method == "sot" else "decoding without the constraint"
            raise InputError(f"logprobs do not go with {how}, whose text is not all sampled as text")


@dataclass(frozen=True)
class PromiseOpened:
    """A body has been forked: its text stands where its parent's had got to. A fork of APAR names no topic and no
    length."""

    branch: str
    parent: str
    topic: str | None = None
    tokens_predicted: int | None = None


@dataclass(frozen=True)
class Likelihood:
    """A token of the text as the bytes that it adds, perhaps half of a character, and its natural log-probability; and
    the likeliest tokens there, likeliest first. They are the model's own distribution over its whole vocabulary, before
    temperature, top-p and grammar. Tokens that are no text (tags, ends) are left out of ``likeliest``."""

    token: bytes
    logprob: float
    likeliest: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True)
class Delta:
    """Visible text that a branch has grown by; ``num_tokens`` may be 0 < n with empty text (half of a character).
    ``likelihoods`` are those of the tokens that make up the text, where the request asks for them."""

    branch: str
    text: str
    num_tokens: int
    likelihoods: tuple[Likelihood, ...] = ()


@dataclass(frozen=True)
class BranchClosed:
    """A body has ended; ``length`` where it ran into its budget."""

    branch: str
    finish_reason: FinishReason


@dataclass(frozen=True)
class Synced:
    """The main branch has joined every body opened so far."""


@dataclass(frozen=True)
class BranchReport:
    """One branch of a finished answer. Steps are the request's own, from 1; seconds count from its submission."""

    id: str
    parent: str | None
    topic: str | None
    tokens_predicted: int | None
    tokens: int
    first_step: int
    last_step: int
    start_s: float
    end_s: float
    replica: str
    finish_reason: FinishReason


@dataclass(frozen=True)
class Usage:
    """Tokens: of the prompt, of the visible text plus the end token, and of the annotation (tags, topics, lengths; of
    'sot' the skeleton and the router's answer)."""

    prompt_tokens: int
    completion_tokens: int
    annotation_tokens: int


@dataclass(frozen=True)
class Timing:
    """Seconds from submission: to the end, to the first visible token, and spent until the prompt was prefilled."""

    wall_s: float
    ttft_s: float
    prefill_s: float


@dataclass(frozen=True)
class Parallel:
    """What forking gained, and what drafts did. ``num_promises`` are the bodies, ``critical_path`` and
    ``sequential_tokens`` model steps; ``num_accepted`` of the ``num_drafted`` tokens guessed were right. An answer of
    ``num_violations`` 0 is a document as the model wrote it; each branch breaks the grammar once at most."""

    num_promises: int
    num_syncs: int
    max_branches: int
    critical_path: int
    sequential_tokens: int
    theoretical_speedup: float
    num_drafted: int = 0
    num_accepted: int = 0
    num_violations: int = 0


@dataclass(frozen=True)
class Report:
    """A finished answer: its text, its linear PASTA-LANG document, and how it was decoded. Where a stop string ended
    it, ``text`` ends before that, and ``document``, ``usage`` and ``branches`` are all that was decoded by then."""

    id: str
    method: str
    text: str
    document: str
    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    parallel: Parallel
    branches: tuple[BranchReport, ...]


@dataclass(frozen=True)
class Finished:
    """The last event of a request that ended by itself, by length, or by cancellation."""

    report: Report


@dataclass(frozen=True)
class BodyPlan:
    """What decides where a body is decoded: its length as predicted, and what it sees, in tokens: of the prompt, and of
    what came behind that."""

    request_id: str
    path: str
    model: str
    tokens_predicted: int
    num_prompt: int
    num_behind: int


@dataclass(frozen=True, eq=False)
class Context:
    """All that a body sees when it is forked. The prompt's KV is found by its ids; behind it come ``ids`` at
    ``positions`` with their KV: main tokens, and bodies joined by then. The main branch's last token has none yet."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    positions: tuple[int, ...]
    block: KVBlock
    last_id: int
    last_position: int


@dataclass(frozen=True, eq=False)
class BodyRequest:
    """A body to decode away from its home: ``forced`` first, at most ``budget`` tokens. Its path and sampling seed its
    tokens, so that they are what they would be anywhere."""

    request_id: str
    path: str
    model: str
    context: Context
    forced: tuple[int, ...]
    budget: int
    sampling: Sampling
    trace: str = ""

    @property
    def id(self) -> str:
        return f"{self.request_id}/{self.path}"

    @property
    def max_slots(self) -> int:
        """The most KV slots that it can come to need."""
        return len(self.context.prompt_ids) + len(self.context.ids) + 1 + self.budget


@dataclass(frozen=True, eq=False)
class BodyNews:
    """What a body decoded away from its home has grown by. With its last token comes the KV of all before it."""

    tokens: tuple[int, ...]
    block: KVBlock | None = None


Event = PromiseOpened | Delta | BranchClosed | Synced | Finished | BodyNews


def is_last(event: Event) -> bool:
    """Whether no event of the same request follows."""
    return isinstance(event, Finished) or (isinstance(event, BodyNews) and event.block is not None)


@dataclass(frozen=True)
class Events:
    """All events of one request in one step: the unit that travels between processes. ``steps`` are those that have led
    to the events since the last message: what :class:`Progress` is made of."""

    request_id: str
    events: tuple[Event, ...]
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Counters:
    """What an engine has done since it was made, and what it holds: passes, tokens fed in them, bytes of its requests'
    KV, requests without any, requests that lost theirs, prompt tokens looked up in the prefix cache and found there."""

    num_steps: int = 0
    num_rows: int = 0
    kv_bytes: int = 0
    num_waiting: int = 0
    num_preemptions: int = 0
    num_prefix_tokens: int = 0
    num_prefix_hits: int = 0

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))
