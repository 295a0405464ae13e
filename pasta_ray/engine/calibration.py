"""Timing an engine's own steps, before anything else uses it."""

import time

from pasta_ray.engine.branch import Branch
from pasta_ray.engine.curve import StepCurve
from pasta_ray.engine.engine import Engine
from pasta_ray.engine.messages import Sampling

CALIBRATED_ROWS = (1, 4, 16)
CALIBRATION_STEPS = 3
CALIBRATION_CONTEXT = 64


def calibrate(engine: Engine) -> StepCurve:
    """Time steps of the idle engine; nothing stays behind. Costs a dozen steps and a chunk of prefill."""
    most = engine.pool.max_slots or engine.max_positions
    context = min(CALIBRATION_CONTEXT, most // 4)
    chunk = min(engine.config.prefill_chunk, most // 2)
    main = engine.open([0] * context, keep_logits=True)  # which keeps it out of the prefix cache
    timed: dict[int, float] = {}
    try:
        while main.num_pending:
            engine.step()
        for rows in CALIBRATED_ROWS:
            if context + rows <= most:
                times = [_timed(engine, main, [1] * rows, Sampling()) for _ in range(CALIBRATION_STEPS)]
                timed[rows] = min(times)
        if chunk > max(timed):
            timed[chunk] = _timed(engine, main, [chunk], None)
    finally:
        engine.free(main)
    return StepCurve(sorted(timed.items()))


def _timed(engine: Engine, main: Branch, sizes: list[int], sampling: Sampling | None) -> float:
    """Seconds of a step that feeds one child for each of ``sizes``, so many tokens; the children are gone again."""
    children = [
        engine.fork(main, [0] * size, path=f"{main.path}.{index}", sampling=sampling)
        for index, size in enumerate(sizes, 1)
    ]
    start = time.perf_counter()
    engine.step()
    seconds = time.perf_counter() - start
    for child in children:
        engine.rewind(child, 0)
        engine.close(child)
    return seconds
