"""The directory: hints about who holds what, which vanish with their owner and come back when it tells them again."""

import random
from dataclasses import replace

from pasta_ray.actors.announcements import Announcement, Load
from pasta_ray.actors.directory import LEASE_S, Directory


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def names(*numbers: int) -> frozenset[bytes]:
    return frozenset(number.to_bytes(2, "big") for number in numbers)


def chain(*numbers: int) -> list[bytes]:
    return [number.to_bytes(2, "big") for number in numbers]


def news(replica: str, number: int, base: int | None, *added: int, **other: object) -> Announcement:
    first = Announcement(replica, "first life", None, Load(), number, base, names(*added))
    return replace(first, **other)  # type: ignore[arg-type]


def found(directory: Directory, asker: str, *numbers: int) -> tuple[str, int] | None:
    holder = directory.find(asker, chain(*numbers))
    return None if holder is None else (holder.peer.name, holder.num_blocks)


def test_the_longest_prefix_of_another_replica_is_found() -> None:
    """Guards the search: the deepest block that anybody else holds, and of its holders the one with the least to do."""
    directory = Directory(Clock())
    directory.announce(news("r0", 1, None, 1, 2, 3, load=Load(rows=5)))
    directory.announce(news("r1", 1, None, 1, 2, load=Load(rows=1)))
    assert found(directory, "r2", 1, 2, 3, 4) == ("r0", 3)
    assert found(directory, "r2", 1, 2, 9) == ("r1", 2)
    assert found(directory, "r0", 1, 2, 3) == ("r1", 2)
    assert found(directory, "r2", 9) is None


def test_an_owner_takes_its_entries_along() -> None:
    """Guards against fetches from replicas that are gone: by silence, by a new life, by being found dead."""
    clock = Clock()
    directory = Directory(clock)
    directory.announce(news("r0", 1, None, 1, 2))
    clock.now = LEASE_S / 2
    directory.announce(news("r1", 1, None, 1))
    clock.now = 1.2 * LEASE_S
    assert found(directory, "r2", 1, 2) == ("r1", 1)
    directory.announce(news("r1", 1, None, 7, incarnation="second life"))
    assert found(directory, "r2", 1) is None
    directory.forget("r1", "first life")
    assert found(directory, "r2", 7) == ("r1", 1)
    directory.forget("r1", "second life")
    assert directory.num_names == 0


def test_a_new_directory_is_told_everything() -> None:
    """Guards a restart: a change to what this directory has never heard is refused until all has been told."""
    old, new = Directory(Clock()), Directory(Clock())
    assert old.announce(news("r0", 1, None, 1)).complete
    assert old.announce(news("r0", 2, 1, 2)).complete
    assert not new.announce(news("r0", 3, 2, 3)).complete
    assert found(new, "r1", 1, 2, 3) is None
    assert new.announce(news("r0", 4, None, 1, 2, 3)).complete
    assert found(new, "r1", 1, 2, 3) == ("r0", 3)
    assert not old.announce(news("r0", 4, 3, 3)).complete, "announcement 3 went elsewhere"


def test_changes_add_up() -> None:
    """Guards the difference that is sent: after any changes, by any replicas, what is found is what is held."""
    rng = random.Random(3)
    directory, held, number = Directory(Clock()), {"r0": set[int](), "r1": set[int]()}, {"r0": 0, "r1": 0}
    for _ in range(300):
        replica = rng.choice(("r0", "r1"))
        now = {n for n in range(12) if rng.random() < 0.4}
        whole = rng.random() < 0.1 or not number[replica]
        before = set() if whole else held[replica]
        number[replica] += 1
        message = news(replica, number[replica], None if whole else number[replica] - 1, *(now - before))
        assert directory.announce(replace(message, removed=names(*(before - now)))).complete
        held[replica] = now
        assert directory.num_names == len(held["r0"] | held["r1"])
        for n in range(12):
            holder = found(directory, "r0", n)
            assert holder == (("r1", 1) if n in held["r1"] else None)
