"""The engine against `transformers`, on the real model in fp32.

Greedy: sequential decoding equals `generate` token for token. Replay: documents through fork, step and join give the
logits of one forward pass with the layout's mask and positions, while other requests decode in the same batches.
Agreement: the exact engine's greedy answers, and what the same engine in other numerics makes of them.

    python benchmarks/parity.py --prompts alpacaeval_dev.jsonl --num 20 --max-tokens 128 --documents documents.jsonl
    python benchmarks/parity.py --prompts alpacaeval_dev.jsonl --num 20 --max-tokens 128 --agreement --quantization int8
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from agreement import agreement
from transformers import AutoModelForCausalLM, PreTrainedModel

from pasta_ray.engine import Engine, EngineConfig, replay
from pasta_ray.engine.config import DTYPES, QUANTIZATIONS
from pasta_ray.engine.messages import Sampling
from pasta_ray.engine.weights import load_checkpoint, resolve_model
from pasta_ray.eval.bench.machine import describe_machine
from pasta_ray.eval.bench.workload import numerics
from pasta_ray.lang import encode_document, layout, parse

NEAR_TIE = 1e-4


def greedy(engine: Engine, reference: PreTrainedModel, prompts: list[list[int]], max_tokens: int) -> dict[str, int]:
    """All prompts at once in the engine, one by one in transformers."""
    branches = [engine.open(ids, sampling=Sampling()) for ids in prompts]
    stop_ids = engine.tokenizer.stop_ids
    while any(not branch.settled for branch in branches):
        for output in engine.step():
            branch = output.branch
            if output.tokens[-1] in stop_ids or len(branch.tokens) >= len(prompts[branches.index(branch)]) + max_tokens:
                engine.settle(branch)
    result = {"prompts": len(prompts), "tokens": 0, "equal": 0, "differ_at_near_tie": 0, "differ": 0}
    for ids, branch in zip(prompts, branches, strict=True):
        got = branch.tokens[len(ids) :]
        inputs = torch.tensor([ids])
        with torch.no_grad():
            out = reference.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=stop_ids[0],
                output_logits=True,
                return_dict_in_generate=True,
            )
        want = out.sequences[0, len(ids) :].tolist()
        result["tokens"] += len(want)
        first = next((i for i, (g, w) in enumerate(zip(got, want, strict=False)) if g != w), None)
        if first is None:
            result["equal" if len(got) == len(want) else "differ"] += 1
        else:
            top = out.logits[first][0].topk(2).values
            result["differ_at_near_tie" if float(top[0] - top[1]) < NEAR_TIE else "differ"] += 1
        engine.free(branch)
    return result


def layout_logits(reference: PreTrainedModel, engine: Engine, prompt: list[int], linear: str) -> torch.Tensor:
    assert engine.tags is not None
    form = layout(encode_document(parse(linear), engine.tokenizer, engine.tags), prompt)
    mask = torch.full((1, 1, len(form.ids), len(form.ids)), torch.finfo(torch.float32).min)
    for token, ranges in enumerate(form.visible):
        for start, end in ranges:
            mask[0, 0, token, start:end] = 0.0
    with torch.no_grad():
        return reference(
            torch.tensor([form.ids]), attention_mask=mask, position_ids=torch.tensor([form.positions])
        ).logits[0]


def merged_model(config: EngineConfig) -> PreTrainedModel:
    """Base, adapter and tag rows in transformers."""
    checkpoint = load_checkpoint(config)
    tensors = checkpoint.take_tensors()
    if checkpoint.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)  # the base's own, without the tags' rows
    checkpoint.config.vocab_size = tensors["model.embed_tokens.weight"].shape[0]
    model: PreTrainedModel = AutoModelForCausalLM.from_config(checkpoint.config, dtype=torch.float32)
    model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    return model.eval()


def read_chats(path: Path, num: int, engine: Engine) -> list[list[int]]:
    records = [json.loads(line) for line in path.open(encoding="utf-8")][:num]
    return [engine.tokenizer.encode_chat([{"role": "user", "content": r["instruction"]}]) for r in records]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, help="JSONL with instruction")
    parser.add_argument("--documents", type=Path, help="JSONL with instruction and document")
    parser.add_argument("--num", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--model", default=EngineConfig.model)
    parser.add_argument("--adapter", default="pasta")
    parser.add_argument("--agreement", action="store_true", help="other numerics against exact ones, on --prompts")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="of the other numerics")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the other numerics")
    args = parser.parse_args()
    if args.agreement and not args.prompts:
        parser.error("--agreement needs --prompts")
    if not args.agreement and (args.quantization or args.dtype != "float32"):
        parser.error("--quantization and --dtype go with --agreement; all else is exact")
    result: dict[str, object] = {}
    if args.agreement:
        exact = Engine(EngineConfig(model=args.model))
        other = Engine(EngineConfig(model=args.model, dtype=args.dtype, quantization=args.quantization))
        prompts = read_chats(args.prompts, args.num, exact)
        found = agreement(exact, other, prompts, args.max_tokens)
        result["agreement"] = found | {"numerics": numerics(other.config)}
    elif args.prompts:
        config = EngineConfig(model=args.model)
        engine = Engine(config)
        reference = AutoModelForCausalLM.from_pretrained(resolve_model(config), dtype=torch.float32).eval()
        result["greedy"] = greedy(engine, reference, read_chats(args.prompts, args.num, engine), args.max_tokens)
    if args.documents:
        config = EngineConfig(model=args.model, adapter=args.adapter)
        engine, reference = Engine(config), merged_model(config)
        records = [json.loads(line) for line in args.documents.open(encoding="utf-8")]
        records = [r for r in records if parse(r["document"]).promises][: args.num]
        worst = 0.0
        for number, record in enumerate(records):
            prompt = engine.tokenizer.encode_chat([{"role": "user", "content": record["instruction"]}])
            neighbours = [engine.open(prompt[:9], sampling=Sampling()) for _ in range(number % 3)]
            logits = replay(engine, prompt, parse(record["document"]))
            for branch in neighbours:
                engine.free(branch)
            worst = max(
                worst, float((logits - layout_logits(reference, engine, prompt, record["document"])).abs().max())
            )
            print(number, worst, flush=True)
        result["replay"] = {"documents": len(records), "max_abs_difference": worst}
    print(json.dumps({"machine": asdict(describe_machine())} | result, indent=2))


if __name__ == "__main__":
    main()
