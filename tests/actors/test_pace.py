import pickle

import pytest

from pasta_ray.actors.pace import MOST_S, Pace
from pasta_ray.errors import OverloadedError


def test_waiting_is_estimated_from_answers() -> None:
    """Guards Retry-After: with 4 places and answers of 8 s, who comes behind 7 others waits for two rounds."""
    pace = Pace(4)
    for _ in range(60):
        pace.observe(8.0)
    assert pace.wait_s(7) == pytest.approx(16.0, rel=0.01)
    assert pace.wait_s(10_000) == MOST_S


def test_the_estimate_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(OverloadedError("full", 7.5)))
    assert (str(error), error.retry_after_s, error.http_status) == ("full", 7.5, 429)
