"""APAR's controls: their map, and where a thread may fork."""

from pathlib import Path

import pytest

from pasta_ray.errors import ModelError
from pasta_ray.lang import ControlMap
from pasta_ray.lang.apar import MAX_DEPTH, Forks, ThreadGrammar
from pasta_ray.lang.grammar import Phase

CONTROLS = ControlMap(fork=90, child=91)
WORD = 5


def thread(forks: Forks, depth: int = 1, *tokens: int) -> ThreadGrammar:
    grammar = ThreadGrammar(CONTROLS, forks, depth)
    for token in tokens:
        grammar.advance(token)
    return grammar


def test_a_fork_stands_behind_text() -> None:
    """Guards against forks without end: a paragraph that is empty has no details."""
    grammar = thread(Forks(9, 9), 0)
    assert grammar.mask_row == Phase.PLAIN
    grammar.advance(WORD)
    assert grammar.mask_row == Phase.THREAD
    grammar.advance(CONTROLS.fork)
    assert grammar.mask_row == Phase.PLAIN


def test_threads_that_choose_in_the_same_step_keep_the_limits() -> None:
    """Guards both limits: with room for one fork, two threads must not both fork in one step."""
    for forks in (Forks(max_forks=1, max_open=9), Forks(max_forks=9, max_open=1)):
        empty, *threads = thread(forks, 0), thread(forks, 1, WORD), thread(forks, 1, WORD)
        assert [each.mask_row for each in threads] == [Phase.THREAD, Phase.PLAIN]
        empty.advance(WORD)
        assert [each.mask_row for each in (empty, *threads)] == [Phase.THREAD, Phase.PLAIN, Phase.PLAIN]


def test_an_ended_thread_makes_room_for_another_one() -> None:
    """Guards against room that is counted down for good, and against the first thread being counted as a fork."""
    forks = Forks(max_forks=9, max_open=1, num_forks=1, num_open=1)
    main, child = thread(forks, 0, WORD), thread(forks, 1, WORD)
    assert main.mask_row == Phase.PLAIN
    child.end()
    assert main.mask_row == Phase.THREAD
    main.end()
    assert forks.num_open == 0


def test_depth_is_bounded() -> None:
    """Guards against lists in lists without end."""
    assert thread(Forks(9, 9), MAX_DEPTH - 1, WORD).mask_row == Phase.THREAD
    assert thread(Forks(9, 9), MAX_DEPTH, WORD).mask_row == Phase.PLAIN


def test_the_map_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Guards adapters: ids by name, and a complaint that names the file."""
    CONTROLS.save(tmp_path)
    assert ControlMap.load(tmp_path) == CONTROLS
    (tmp_path / "apar.json").write_text('{"tags": {"<|fork|>": 1}}')
    with pytest.raises(ModelError, match=r"apar.json: expected .*<\|child\|>"):
        ControlMap.load(tmp_path)
    with pytest.raises(ModelError, match="2 different"):
        ControlMap(3, 3)
