"""Going on with an answer that was begun elsewhere: its process died, or one of its branches is wanted here."""

from pasta_ray.engine.commit import StepOutput
from pasta_ray.engine.methods import Run
from pasta_ray.engine.progress import Progress, Sampled
from pasta_ray.errors import InputError


def resume(run: Run, progress: Progress) -> None:
    """Bring ``run``, which has only been opened, to where ``progress`` is. Its method takes every token again as it
    came then, step by step: it forks, holds and joins, so that branches, rows, positions, grammars and counts are those
    of the answer that was interrupted. Nothing is computed. In the coming steps the engine feeds the tokens as it does
    those of a preempted request: by one prefill, each with the sight that it had, before any branch goes on.

    What the method says on the way is dropped: the reader has it. Raises InputError where the tokens are no progress of
    this request; the caller frees the run then.
    """
    if not progress.steps:
        return
    for number, step in enumerate(progress.steps, 1):
        if run.done:
            raise InputError(f"the progress of request {run.request.id!r} goes on behind its end, at step {number}")
        run.elapsed_s = step.elapsed_s
        run.react([_recall(run, number, sampled) for sampled in step.sampled])
    if run.done:
        raise InputError(f"the progress of request {run.request.id!r} is that of an answer that has ended")
    run.take_steps()
    run.elapsed_s = max(progress.elapsed_s, progress.steps[-1].elapsed_s)
    run.engine.feed_again(run.main.branch)


def _recall(run: Run, number: int, sampled: Sampled) -> StepOutput:
    track = run.tracks.get(sampled.branch)
    if track is None or track.finish_reason or not sampled.tokens:
        raise InputError(
            f"the progress of request {run.request.id!r} does not fit: step {number} gives branch {sampled.branch!r}"
            f" {len(sampled.tokens)} tokens; open by then: {', '.join(_open(run))}"
        )
    return run.engine.recall(track.branch, sampled.tokens, sampled.num_drafted)


def _open(run: Run) -> list[str]:
    return [track.path for track in run.tracks.values() if not track.finish_reason]
