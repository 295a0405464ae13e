"""Position strategies while decoding: what a model writes stands where the layout of its document puts it."""

from pathlib import Path

import pytest

from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.methods.base import Run
from pasta_ray.engine.methods.pasta import PastaRun
from pasta_ray.lang import PositionStrategy, TagMap, TokenDocument, TokenPromise, layout, parse, read_tokens
from tests.engine.test_methods import make_decoder, request


def finished(decoder: Decoder, number: int) -> Run:
    """The run of one request, at its end."""
    decoder.submit(request(number))
    (run_,) = decoder._runs.values()
    while decoder.busy:
        decoder.step()
    return run_


def as_written(run_: Run, tags: TagMap) -> tuple[TokenDocument, list[int]]:
    """The answer in token form, from the branches' own tokens, and the position of each of its tokens."""
    num_prompt = len(run_.request.prompt_ids)
    bodies = [track.branch for track in run_.tracks.values() if track is not run_.main]
    ids: list[int] = []
    positions: list[int] = []
    main = run_.main.branch
    for token, position in list(zip(main.tokens, main.positions, strict=True))[num_prompt:]:
        ids.append(token)
        positions.append(position)
        if token == tags.promise_end:
            body = bodies.pop(0)
            ids += body.tokens
            positions += body.positions
    assert not bodies
    return read_tokens(ids, run_.engine.tokenizer, tags), positions


@pytest.mark.parametrize(("name", "budget"), [("pred-10x", 990), ("pred-1x", 999), ("fixed-70", 990)])
def test_decoding_follows_the_checkpoints_strategy(name: str, budget: int, tmp_path: Path) -> None:
    """Guards decoding against another gap, another count or another budget than the checkpoint was trained with."""
    decoder = make_decoder(tmp_path, PositionStrategy.named(name))
    tags = decoder.engine.tags
    assert isinstance(tags, TagMap)
    assert tags.positions.name == name
    gaps: set[int] = set()
    for number in range(6):
        run_ = finished(decoder, number)
        assert isinstance(run_, PastaRun)
        if any(track.finish_reason != "stop" for track in run_.tracks.values()):
            continue
        document, positions = as_written(run_, tags)
        got = layout(document, run_.request.prompt_ids)
        num_prompt = len(run_.request.prompt_ids)
        assert list(got.positions[num_prompt : num_prompt + len(positions)]) == positions
        promises = [node for node in document.nodes if isinstance(node, TokenPromise)]
        assert [node.num_tokens for node in promises] == [p.num_tokens for p in run_.document().promises]
        assert all(node.num_tokens <= budget for node in promises)
        gaps |= {node.gap for node in promises}
        assert parse(run_.document().linear(), tags.positions) == run_.document()
    assert len(gaps) == 1 if name == "fixed-70" else len(gaps) > 3
    assert decoder.num_slots == 0
