"""APAR's layout: what each token of a tree of threads sees, where it stands, and what it is predicted from."""

from pasta_ray.lang import ControlMap, Thread, thread_layout

CONTROLS = ControlMap(fork=100, child=101)


def test_a_tree_by_hand() -> None:
    """Guards positions, visibility and labels of a thread in a thread, and of what a parent writes after a fork."""
    inner = Thread((31, 99))
    main = Thread((10, Thread((20, inner, 21, 99)), 11, 99))
    form = thread_layout(main, CONTROLS, (1, 2))
    assert form.ids == (1, 2, 10, 100, 101, 20, 100, 101, 31, 99, 21, 99, 11, 99)
    assert form.positions == (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 7, 8, 4, 5)
    assert form.label_source == (None, None, 1, 2, None, 4, 5, None, 7, 8, 6, 10, 3, 12)
    path = {i: [j for j in range(len(form.ids)) if form.sees(i, j)] for i in range(len(form.ids))}
    assert path[9] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert path[11] == [0, 1, 2, 3, 4, 5, 6, 10, 11]
    assert path[13] == [0, 1, 2, 3, 12, 13]


def test_without_forks_it_is_a_chain() -> None:
    """Guards the plain answer: each token sees all before it and is predicted from its neighbour."""
    form = thread_layout(Thread((5, 6, 99)), CONTROLS, (1,))
    assert form.label_source == (None, 0, 1, 2)
    assert form.visible == ((((0, 1)),), ((0, 2),), ((0, 3),), ((0, 4),))
    assert CONTROLS.fork not in form.ids
