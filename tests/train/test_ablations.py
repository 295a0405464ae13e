"""Annotation that is left out: nothing else may change, and every ablation's plan must be one."""

from pathlib import Path

import pytest

from pasta_ray.errors import InputError
from pasta_ray.eval.plan import EvalPlan
from pasta_ray.lang import parse
from pasta_ray.train.ablations import Part, ablate
from pasta_ray.train.config import load_config
from pasta_ray.train.data import Record

RECORD = Record(
    id="d",
    instruction="i",
    document='Hi: <promise topic="One two" tokens="10"/><async> first</async><sync/>so '
    '<promise topic="b" tokens="10"/><async> second</async><sync/>end',
)
PLANS = sorted((Path(__file__).parents[2] / "jobs/configs/ablations").glob("*.yaml"))


@pytest.mark.parametrize(
    ("parts", "topics", "syncs"),
    [((), ["One two", "b"], 2), (("topics",), ["part"] * 2, 2), (("syncs",), ["One two", "b"], 0)],
)
def test_only_that_part_is_left_out(parts: tuple[Part, ...], topics: list[str], syncs: int) -> None:
    """Guards text or predicted lengths that change with it: two runs would differ in more than what is compared."""
    before, after = parse(RECORD.document), parse(ablate(RECORD, parts).document)
    assert [promise.topic for promise in after.promises] == topics
    assert after.num_syncs == syncs
    assert after.text() == before.text()
    assert [promise.num_tokens for promise in after.promises] == [promise.num_tokens for promise in before.promises]


def test_a_document_that_does_not_parse_is_named() -> None:
    with pytest.raises(InputError, match="document d: "):
        ablate(RECORD.model_copy(update={"document": "<sync/>"}), ("syncs",))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_ablation_is_a_plan(path: Path) -> None:
    plan = load_config(EvalPlan, path, [])
    assert plan.baseline_name == "sequential"
    assert len(plan.systems) > 2


def test_there_are_as_many_ablations_as_documented() -> None:
    assert {path.stem for path in PLANS} == {"annotators", "constraint", "positions", "stages", "syncs", "topics"}
