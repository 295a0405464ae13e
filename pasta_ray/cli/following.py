"""A training run's progress, read from its log while other processes do the work."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from pasta_ray.train.run_folder import RunFolder

POLL_S = 1.0


@contextmanager
def follow(folder: "RunFolder") -> Iterator[None]:
    """A bar on stderr, if that is a terminal: steps, loss and tokens/s of the run in ``folder``."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task, ended = progress.add_task("starting", total=None), threading.Event()

        def poll() -> None:
            while not ended.wait(POLL_S):
                if log := folder.read_log():
                    last = log[-1]
                    text = f"loss {last['loss']:.3f}, {last['tokens_per_s']:.0f} tokens/s"
                    progress.update(task, description=text, total=last["num_steps"], completed=last["step"])

        poller = threading.Thread(target=poll, daemon=True)
        poller.start()
        try:
            yield
        finally:
            ended.set()
            poller.join()
