"""Where a step's time goes: its matrix products, attention and sampling under a stopwatch, and its products alone."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F

from pasta_ray.engine import Engine
from pasta_ray.engine import commit as commit_module
from pasta_ray.engine.linear import Linear
from pasta_ray.engine.sampler import sample
from pasta_ray.eval.bench.workload import Decoding, numerics

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Product:
    """One call of a linear layer: ``x [rows, in] -> [rows, out]``."""

    linear: Linear
    x: torch.Tensor
    num_outputs: int


@dataclass(frozen=True)
class Profile:
    """One step: ``rest_s`` is what neither products, ``F.scaled_dot_product_attention`` nor sampling took."""

    total_s: float
    gemm_s: float
    attention_s: float
    sampling_s: float
    products: tuple[Product, ...]

    @property
    def rest_s(self) -> float:
        return self.total_s - self.gemm_s - self.attention_s - self.sampling_s


def profile_step(engine: Engine, decoding: Decoding) -> Profile:
    """One step with its calls timed, which itself costs a little: the total is no figure of the engine's. The step
    before it is not watched (see :meth:`Decoding.steady_step`)."""
    stopwatch = _Stopwatch()
    decoding.step()
    with stopwatch.watching(engine):
        total_s = decoding.step()
    seconds = stopwatch.seconds
    return Profile(total_s, seconds["gemm"], seconds["attention"], seconds["sampling"], tuple(stopwatch.products))


def products_alone(products: tuple[Product, ...]) -> float:
    """Seconds of the same products with the same numbers of rows in the same order, and nothing between them."""
    with torch.inference_mode():
        start = time.perf_counter()
        for product in products:
            product.linear(product.x)
        return time.perf_counter() - start


def weight_bytes(engine: Engine, products: tuple[Product, ...]) -> int:
    """Bytes of all matrices that a step reads. Biases, norms, scales and its rows of the embedding are left out: they
    are thousandths of these."""
    num_weights = sum(product.x.shape[-1] * product.num_outputs for product in products)
    return num_weights * WEIGHT_BYTES[numerics(engine.config)]


class _Stopwatch:
    """Seconds by part, and the products that were computed meanwhile."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.products: list[Product] = []

    @contextmanager
    def watching(self, engine: Engine) -> Iterator[None]:
        """Puts itself between the engine and what it calls, for as long as the context lasts."""
        model = engine.model
        layers = [self._watched(layer) for layer in model.layers]
        with ExitStack() as stack:
            stack.enter_context(_replaced(model, "layers", layers))
            stack.enter_context(_replaced(model, "head", self._linear(model.head)))
            attention = self._timed("attention", F.scaled_dot_product_attention)
            stack.enter_context(_replaced(F, "scaled_dot_product_attention", attention))
            stack.enter_context(_replaced(commit_module, "sample", self._timed("sampling", sample)))
            yield

    def _watched(self, layer: Any) -> Any:
        """A layer's parts are tensors, which cannot be called, and linears, which can."""
        parts = {field.name: getattr(layer, field.name) for field in fields(layer)}
        return replace(layer, **{name: self._linear(part) for name, part in parts.items() if callable(part)})

    def _linear(self, linear: Linear) -> Linear:
        timed = self._timed("gemm", linear)

        def watched(x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = timed(x)
            self.products.append(Product(linear, x, y.shape[-1]))
            return y

        return watched

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = call(*args, **kwargs)
            self.seconds[part] += time.perf_counter() - start
            return result

        return timed


@contextmanager
def _replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
