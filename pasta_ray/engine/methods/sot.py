"""Skeleton-of-Thought (arXiv 2307.15337): first the points of an answer, then all of them at the same time."""

from pasta_ray.engine.branch import Branch
from pasta_ray.engine.engine import Engine
from pasta_ray.engine.messages import BranchClosed, Event, FinishReason, PromiseOpened, Request, Sampling
from pasta_ray.engine.methods.base import Run, Track
from pasta_ray.errors import InputError
from pasta_ray.lang import Document, Text
from pasta_ray.lang.grammar import PlainGrammar
from pasta_ray.lang.skeleton import (
    MAX_POINTS,
    SKELETON_START,
    expansion_chat,
    expansion_start,
    heading,
    read_points,
    router_chat,
    says_yes,
    skeleton_chat,
    topic_of,
)

ROUTER_BUDGET = 4
SKELETON_BUDGET = 160
EXPANSION_BUDGET = 120  # a multiple of 10, so that it is also what a point promises


class SkeletonRun(Run):
    """The main branch is given one prompt after the other: the router's question, if the request wants it; the
    skeleton's; and then what all points' prompts begin with, from which every point forks with the rest of its own. No
    points, or a router that says no, and it is given the plain prompt, and answers as sequential decoding does.

    The skeleton is annotation; a point's number and title are visible text of the main branch, and its expansion, of
    at most ``EXPANSION_BUDGET`` tokens, is a promise's body.

    ``_take_main`` acts on the main branch's tokens, ``_reply`` are those since the present prompt, ``_waiting`` are the
    points not started yet, each with its forced run.
    """

    def __init__(self, engine: Engine, request: Request, replica: str) -> None:
        if not request.messages or request.messages[-1][0] != "user":
            raise InputError("method 'sot' answers a chat that ends with a user's message; a plain prompt is none")
        self._prompts: list[list[int]] = [_prompt(engine, skeleton_chat(request.messages), SKELETON_START)]
        if request.router:
            self._prompts.insert(0, _prompt(engine, router_chat(request.messages)))
        num_positions = max(map(len, self._prompts)) + SKELETON_BUDGET
        if num_positions > engine.max_positions:
            raise InputError(
                f"method 'sot' needs {num_positions} positions to ask for this question's skeleton; the model has"
                f" {engine.max_positions}"
            )
        engine.pool.check_fits(num_positions, "method 'sot', to ask for this question's skeleton,")
        self._take_main = self._take_route if request.router else self._take_skeleton
        self._reply: list[int] = []
        self._points: list[str] = []
        self._waiting: list[tuple[int, list[int]]] = []
        self._num_further_prompts = 0
        super().__init__(engine, request, replica)

    def open_main(self) -> Branch:
        sampling = Sampling() if self.request.router else self.request.sampling
        return self.engine.open(self._prompts.pop(0), sampling=sampling, constraint=PlainGrammar())

    def take(self, track: Track, token: int) -> list[Event]:
        return self._take_main(token) if track is self.main else self._take_point(track, token)

    def _take_route(self, token: int) -> list[Event]:
        if self._replying(token, ROUTER_BUDGET):
            return []
        if says_yes(self.engine.tokenizer.decode(self._reply)):
            self._take_main = self._take_skeleton
            self._ask(self._prompts.pop(0), self.request.sampling)
        else:
            self._answer_plainly()
        return []

    def _take_skeleton(self, token: int) -> list[Event]:
        replying = self._replying(token, SKELETON_BUDGET)
        skeleton = SKELETON_START + self.engine.tokenizer.decode(self._reply)
        most = min(MAX_POINTS, self.request.max_promises)
        points = read_points(skeleton, whole=token in self.engine.tokenizer.stop_ids)[:most]
        if replying and len(points) < most:
            return []
        prompts = [
            _prompt(self.engine, expansion_chat(self.request.messages, points, index), expansion_start(points, index))
            for index in range(len(points))
        ]
        if points and self._has_room(prompts):
            self._expand(points, prompts)
        else:
            self._answer_plainly()
        return []

    def _has_room(self, prompts: list[list[int]]) -> bool:
        """Whether all points, each with its budget, stay within the model's positions and the engine's KV."""
        num_shared, max_slots = _num_shared(prompts), self.engine.pool.max_slots
        num_slots = num_shared + sum(len(prompt) - num_shared + EXPANSION_BUDGET for prompt in prompts)
        fits = max_slots is None or num_slots <= max_slots
        return fits and max(map(len, prompts)) + EXPANSION_BUDGET <= self.engine.max_positions

    def _replying(self, token: int, budget: int) -> bool:
        """Count a token of a hidden reply; False where it was the last one."""
        self.num_annotation += 1
        self._reply.append(token)
        return token not in self.engine.tokenizer.stop_ids and len(self._reply) < budget

    def _ask(self, prompt_ids: list[int], sampling: Sampling | None) -> None:
        """Give the main branch another prompt; the slots of the one before are freed."""
        self.engine.free(self.main.branch)
        self.main.branch = self.engine.open(prompt_ids, sampling=sampling, constraint=PlainGrammar())
        self._reply = []
        self._num_further_prompts += 1

    def _answer_plainly(self) -> None:
        self._take_main = self._take_plain
        self._ask(list(self.request.prompt_ids), self.request.sampling)

    def _take_plain(self, token: int) -> list[Event]:
        if token in self.engine.tokenizer.stop_ids:
            self.engine.close(self.main.branch)
            return self.end(self.main, "stop")
        return self.visible(self.main, token)

    def _expand(self, points: list[str], prompts: list[list[int]]) -> None:
        num_shared = _num_shared(prompts)
        self._ask(prompts[0][:num_shared], None)
        self._points = points
        self._waiting = [(index, prompt[num_shared:]) for index, prompt in enumerate(prompts)]

    def after_step(self) -> list[Event]:
        """Start as many points as may be decoded at the same time; the last one started ends the main branch."""
        events: list[Event] = []
        num_open = sum(not track.finish_reason for track in self.tracks.values()) - 1
        while self._waiting and num_open < self.request.max_branches and not self.full:
            events += self._start(*self._waiting.pop(0))
            num_open += 1
        if self._points and not self._waiting and not self.main.finish_reason:
            events += self.end(self.main, "stop")
        return events

    def _start(self, index: int, forced: list[int]) -> list[Event]:
        events: list[Event] = []
        for token in self.engine.tokenizer.encode(heading(self._points, index)):
            if not self.full:
                events += self.visible(self.main, token)
        events += self.flush(self.main)
        if self.full:
            return events
        path = f"{self.main.path}.{index + 1}"
        topic = topic_of(self._points[index], index)
        branch = self.engine.fork(
            self.main.branch, forced, path=path, sampling=self.request.sampling, constraint=PlainGrammar()
        )
        self._track(branch, self.main, topic, EXPANSION_BUDGET)
        return [*events, PromiseOpened(path, self.main.path, topic, EXPANSION_BUDGET)]

    def _take_point(self, track: Track, token: int) -> list[Event]:
        if token in self.engine.tokenizer.stop_ids:
            return self._end_point(track, "stop")
        events = self.visible(track, token)
        return events + self._end_point(track, "length") if track.num_tokens == EXPANSION_BUDGET else events

    def _end_point(self, track: Track, reason: FinishReason) -> list[Event]:
        self.engine.close(track.branch)
        return [*self.end(track, reason), BranchClosed(track.path, reason)]

    def document(self) -> Document:
        parts = self.main.parts()
        return Document(tuple(Text(part) if isinstance(part, str) else part.promise() for part in parts))

    def critical_path(self) -> int:
        """The main branch's tokens, a step for each further prompt's prefill, and the longest expansion."""
        longest = max((track.num_tokens for track, _ in self.main.children), default=0)
        return self.main.num_tokens + self._num_further_prompts + longest


def _prompt(engine: Engine, messages: list[dict[str, str]], start: str = "") -> list[int]:
    """A chat whose answer goes on behind ``start``."""
    return engine.tokenizer.encode_chat(messages) + engine.tokenizer.encode(start)


def _num_shared(prompts: list[list[int]]) -> int:
    """How many tokens all prompts begin with, and one less where nothing would be left of one of them."""
    shortest = min(map(len, prompts)) - 1
    return next((index for index in range(shortest) if len({prompt[index] for prompt in prompts}) > 1), shortest)
