"""Position strategies: their names, their arithmetic, and their place in a checkpoint's tag map."""

import json
from pathlib import Path

import pytest

from pasta_ray.errors import InputError, ModelError
from pasta_ray.lang import PRED_1X, PRED_10X, PositionStrategy, TagMap

FIXED = PositionStrategy.named("fixed-80")


def test_lengths_and_gaps() -> None:
    """Guards the three strategies' arithmetic: what is predicted for a body, and how far the main branch moves on."""
    assert [PRED_10X.predict(n) for n in (2, 10, 11)] == [10, 10, 20]
    assert [PRED_1X.predict(n) for n in (2, 10, 11)] == [2, 10, 11]
    assert [PRED_10X.gap(20), PRED_1X.gap(17), FIXED.gap(20)] == [20, 17, 80]
    assert [s.max_decoded_gap for s in (PRED_10X, PRED_1X, FIXED)] == [990, 999, 80]
    assert [s.max_decoded_digits for s in (PRED_10X, PRED_1X, FIXED)] == [2, 3, 2]


@pytest.mark.parametrize("name", ["pred-10x", "pred-1x", "fixed-80"])
def test_names_lead_back(name: str) -> None:
    """Guards what stands in a file or a configuration."""
    assert PositionStrategy.named(name).name == name
    assert PositionStrategy.named("fixed") == PositionStrategy.named("fixed-50")


@pytest.mark.parametrize("name", ["", "pred", "Pred-10X", "fixed-0", "fixed-", "fixed-99999", "pred-1x-5", "fixed "])
def test_unknown_names_are_refused_with_what_is_allowed(name: str) -> None:
    """Guards a run against a misspelt strategy that would silently be the default."""
    with pytest.raises(InputError, match="allowed: pred-10x, pred-1x, fixed"):
        PositionStrategy.named(name)


@pytest.mark.parametrize("positions", [PRED_10X, PRED_1X, FIXED])
def test_a_tag_map_carries_its_strategy(positions: PositionStrategy, tmp_path: Path) -> None:
    """Guards decoding against another strategy than the checkpoint was trained with."""
    tags = TagMap.after(7, positions)
    tags.save(tmp_path)
    assert TagMap.load(tmp_path) == tags
    assert tags.ids == (7, 8, 9, 10, 11, 12)


def test_a_tag_map_without_a_strategy_is_of_the_default(tmp_path: Path) -> None:
    """Guards the checkpoints written before there was a choice."""
    TagMap.after(7).save(tmp_path)
    path = tmp_path / TagMap.file
    values = json.loads(path.read_text())
    del values["positions"]
    path.write_text(json.dumps(values))
    assert TagMap.load(tmp_path) == TagMap.after(7)
    assert TagMap.load(tmp_path).positions == PRED_10X


@pytest.mark.parametrize("value", ["pred-100x", 10, None])
def test_a_malformed_strategy_names_its_file(value: object, tmp_path: Path) -> None:
    """Guards against a typing error deep in a run, without the file that it comes from."""
    TagMap.after(7).save(tmp_path)
    path = tmp_path / TagMap.file
    path.write_text(json.dumps(json.loads(path.read_text()) | {"positions": value}))
    with pytest.raises(ModelError, match=r"pasta\.json"):
        TagMap.load(tmp_path)
