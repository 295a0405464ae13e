"""PASTA against sequential decoding of the same data's tag-free twin, on one engine, prompt by prompt in turn.

Only prompts whose reference answer is a list or has sections take part, for those are the ones that can split; with
`--all` every prompt does. For each prompt `sequential` runs with the adapter that was trained without tags, and `pasta`
with the one that was trained with them, both greedy, one or the other first in turn. Medians and geometric means of one
run; run it on a quiet machine.

    python benchmarks/speedup.py --prompts alpacaeval_dev.jsonl --limit 40 --out speedup.json
    python benchmarks/speedup.py --prompts alpacaeval_dev.jsonl --batch 8 --structure-only --out structure.json
"""

import argparse
import json
import math
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

from pasta_ray.engine import Engine, EngineConfig
from pasta_ray.engine.config import QUANTIZATIONS
from pasta_ray.engine.decoder import Decoder
from pasta_ray.engine.messages import Finished, Report, Request
from pasta_ray.eval.bench.machine import describe_machine
from pasta_ray.lang import TAG_NAMES, parse
from pasta_ray.train.annotate import repetition
from pasta_ray.train.annotators.splits import has_structure

TAG_TEXT = ("<promise", "</promise", "<async", "</async", "<sync", *TAG_NAMES)


def decode(decoder: Decoder, method: str, prompts: list[dict[str, str]], batch: int, max_tokens: int) -> list[Report]:
    """Reports in the order of ``prompts``, ``batch`` requests at a time."""
    tokenizer = decoder.engine.tokenizer
    waiting = list(reversed(prompts))
    reports: dict[str, Report] = {}
    while waiting or decoder.busy:
        while waiting and decoder.num_requests < batch:
            prompt = waiting.pop()
            ids = tokenizer.encode_chat([{"role": "user", "content": prompt["instruction"]}])
            decoder.submit(Request(prompt["id"], tuple(ids), method, max_tokens=max_tokens))
        for news in decoder.step():
            for event in news.events:
                if isinstance(event, Finished):
                    reports[news.request_id] = event.report
                    print(f"{method} {len(reports)}/{len(prompts)}", file=sys.stderr, flush=True)
    assert decoder.num_slots == 0
    return [reports[prompt["id"]] for prompt in prompts]


def bodies_at_once(report: Report) -> int:
    """The most bodies that were being decoded in one step."""
    bodies = [branch for branch in report.branches if branch.parent]
    return max((sum(b.first_step <= at.first_step <= b.last_step for b in bodies) for at in bodies), default=0)


def structure(reports: list[Report]) -> dict[str, float]:
    for report in reports:
        assert parse(report.document).text() == report.text
    speedups = [report.parallel.theoretical_speedup for report in reports]
    predicted = [(b.tokens_predicted, b.tokens) for r in reports for b in r.branches if b.tokens_predicted]
    return {
        "prompts": len(reports),
        "share_with_two_bodies_at_once": sum(bodies_at_once(r) >= 2 for r in reports) / len(reports),
        "answers_that_show_a_tag": sum(any(tag in r.text for tag in TAG_TEXT) for r in reports),
        "theoretical_speedup_geomean": geomean(speedups),
        "promises_per_answer": statistics.mean(r.parallel.num_promises for r in reports),
        "body_length_error_median_tokens": statistics.median(abs(p - t) for p, t in predicted) if predicted else 0.0,
        "bodies_cut_by_budget": sum(b.finish_reason == "length" for r in reports for b in r.branches if b.parent),
        "answers_cut_by_length": sum(r.finish_reason == "length" for r in reports),
        "answers_that_loop": sum(repetition(r.text) > 0.5 for r in reports),
    }


def geomean(values: list[float]) -> float:
    return math.exp(statistics.mean(map(math.log, values)))


def compare(pairs: list[tuple[Report, Report]]) -> dict[str, float]:
    """(sequential, pasta) of each prompt. Length-normalised: seconds per visible token."""
    wall = [s.timing.wall_s / p.timing.wall_s for s, p in pairs]
    per_token = [
        (s.timing.wall_s / s.usage.completion_tokens) / (p.timing.wall_s / p.usage.completion_tokens) for s, p in pairs
    ]
    if not pairs:
        return {"prompts": 0}
    return {
        "prompts": len(pairs),
        "wall_speedup_geomean": geomean(wall),
        "wall_speedup_median": statistics.median(wall),
        "length_normalised_speedup_geomean": geomean(per_token),
        "share_of_prompts_slower": sum(ratio < 1 for ratio in wall) / len(wall),
        "visible_tokens_sequential_mean": statistics.mean(s.usage.completion_tokens for s, _ in pairs),
        "visible_tokens_pasta_mean": statistics.mean(p.usage.completion_tokens for _, p in pairs),
        "ms_per_step_sequential_median": statistics.median(_ms_per_step(s) for s, _ in pairs),
        "ms_per_step_pasta_median": statistics.median(_ms_per_step(p) for _, p in pairs),
        "realised_over_theoretical_median": statistics.median(
            ratio / p.parallel.theoretical_speedup for ratio, (_, p) in zip(per_token, pairs, strict=True)
        ),
    }


def _ms_per_step(report: Report) -> float:
    return 1000 * (report.timing.wall_s - report.timing.prefill_s) / max(1, report.parallel.critical_path - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL with id, instruction and reference_output")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--all", action="store_true", help="also prompts whose reference answer has no structure")
    parser.add_argument("--limit", type=int, help="evenly spaced prompts among those that qualify")
    parser.add_argument("--model", default=EngineConfig.model)
    parser.add_argument("--adapter", default="pasta")
    parser.add_argument("--baseline", default="baseline-sft")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quantization", choices=QUANTIZATIONS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=384)
    parser.add_argument("--structure-only", action="store_true", help="only pasta; how answers split, no times")
    args = parser.parse_args()

    records = [json.loads(line) for line in args.prompts.open(encoding="utf-8")]
    prompts = [record for record in records if args.all or has_structure(record["reference_output"])]
    if args.limit and args.limit < len(prompts):
        prompts = [prompts[i * len(prompts) // args.limit] for i in range(args.limit)]
    options = {"model": args.model, "dtype": args.dtype, "quantization": args.quantization, "num_threads": args.threads}
    pasta = Decoder(Engine(EngineConfig(adapter=args.adapter, **options)))
    result: dict[str, object] = {"command": " ".join(sys.argv), "machine": asdict(describe_machine())}
    if args.structure_only:
        reports = decode(pasta, "pasta", prompts, args.batch, args.max_tokens)
    else:
        baseline = Decoder(Engine(EngineConfig(adapter=args.baseline, **options)))
        for decoder, method in ((baseline, "sequential"), (pasta, "pasta")):
            decode(decoder, method, prompts[:1], 1, 16)  # warm-up
        pairs = []
        sides = ((baseline, "sequential"), (pasta, "pasta"))
        for number, prompt in enumerate(prompts):
            order = sides if number % 2 == 0 else sides[::-1]
            done = {method: decode(decoder, method, [prompt], 1, args.max_tokens)[0] for decoder, method in order}
            pairs.append((done["sequential"], done["pasta"]))
        reports = [p for _, p in pairs]
        result["speed"] = compare(pairs)
        result["speed_where_it_forks"] = compare([pair for pair in pairs if pair[1].parallel.num_promises])
        finished = [
            pair for pair in pairs if all(r.finish_reason == "stop" and repetition(r.text) <= 0.5 for r in pair)
        ]
        if finished:
            result["speed_of_finished_without_loops"] = compare(finished)
    result["structure"] = structure(reports)
    print(json.dumps(result, indent=2))
    args.out.write_text(json.dumps(result | {"reports": [asdict(r) for r in reports]}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
