"""The engine's four primitives by hand: two thoughts side by side, and an end that has seen both.

python examples/engine_by_hand.py
"""

import argparse
from collections.abc import Sequence

import torch

from pasta_ray.engine import Engine, EngineConfig, replay
from pasta_ray.engine.branch import Branch
from pasta_ray.engine.messages import Sampling
from pasta_ray.lang import parse

GREEDY = Sampling()
DOCUMENT = 'Tips:<promise topic="Light" tokens="10"/><async> dim it.</async><sync/> Sleep well.'


def run(engine: Engine, branches: Sequence[Branch], num_tokens: int) -> None:
    """Step until each of the branches has sampled so many tokens; all of them share every step."""
    left = dict.fromkeys(branches, num_tokens)
    while left:
        for output in engine.step():
            if output.branch not in left or not output.tokens:
                continue
            left[output.branch] -= len(output.tokens)
            if not left[output.branch]:
                engine.settle(output.branch)  # sample nothing more; what is pending is still fed
                del left[output.branch]


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m-instruct")
    options = parser.parse_args(args)
    engine = Engine(EngineConfig(options.model))
    tokenizer = engine.tokenizer
    prompt = tokenizer.encode_chat([{"role": "user", "content": "Should I sleep more?"}])

    # open: a main branch, which samples nothing yet
    main_branch = engine.open(prompt, sampling=GREEDY)
    engine.settle(main_branch)
    # fork: two children, each with a start of its own; no KV is copied
    pro = engine.fork(main_branch, tokenizer.encode("For it:"), path="0.1", sampling=GREEDY)
    con = engine.fork(main_branch, tokenizer.encode("Against it:"), path="0.2", sampling=GREEDY)
    run(engine, [pro, con], 20)
    # join: the main branch sees both from here on; nothing is computed again
    engine.join(main_branch, [pro, con])
    engine.feed(main_branch, tokenizer.encode("In short:"))
    engine.resume(main_branch)
    run(engine, [main_branch], 20)
    for branch in (pro, con, main_branch):
        shown = branch.tokens[len(prompt) :] if branch is main_branch else branch.tokens
        print(f"{branch.path:>4}: {tokenizer.decode(shown)!r}")
    engine.free(main_branch)  # and with it its children: every slot is given back

    # replay: the logits that decoding a document gives, whoever wrote it; for a model that knows tags
    if engine.tags is None:
        engine = Engine(EngineConfig(options.model, "pasta"))
    logits = replay(engine, prompt, parse(DOCUMENT))
    print(f"replay: {tuple(logits.shape)} logits, all finite: {bool(torch.isfinite(logits).all())}")


if __name__ == "__main__":
    main()
