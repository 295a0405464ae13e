"""Many prompts at the same time on one engine: requests come and go between two steps.

python examples/batch.py "Name three fruits." "Why is the sky blue?"
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.messages import Finished, Request, Sampling
from pasta_ray.engine.methods import default_method


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--adapter", default="pasta", help="none: the model itself")
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args(args)
    engine = Engine(EngineConfig(options.model, None if options.adapter == "none" else options.adapter))
    decoder = Decoder(engine)
    method = default_method(engine.tags)

    for number, prompt in enumerate(options.prompts):
        ids = engine.tokenizer.encode_chat([{"role": "user", "content": prompt}])
        sampling = Sampling(temperature=0.7, seed=number)
        decoder.submit(Request(f"prompt-{number}", tuple(ids), method, options.max_tokens, sampling=sampling))
    while decoder.busy:
        for news in decoder.step():  # of each request that has some: promises, deltas, closes, and at last the report
            if isinstance(news.events[-1], Finished):
                print(json.dumps(asdict(news.events[-1].report), ensure_ascii=False))


if __name__ == "__main__":
    main()
