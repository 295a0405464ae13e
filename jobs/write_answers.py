"""Let the base model write structured answers to the prompts of a pool: stage 1's documents in its own words.

A small model that is trained on the answers of a much larger one is pulled off its own distribution and starts to
loop. So the pool gives the prompts, and the base model the answers: it is asked for structure in the prompt, its
answer is made to start so, and the request is left out of the training record. One JSON record a line; started
again, it goes on.

    python jobs/write_answers.py --pool train_pool.jsonl --model FOLDER --out answers.jsonl
"""

import argparse
import json
import random
import re
import zlib
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

# Style: what is asked for, and how the answer is made to start; the start is part of the answer.
STYLES = {
    "numbered": (
        "Answer with a numbered list. Give each item a short bold title and one or two sentences.",
        (
            "1. **",
            "Here are some ideas:\n\n1. **",
            "Here are the main points:\n\n1. **",
            "Sure! Here is a list:\n\n1. **",
        ),
    ),
    "bulleted": (
        "Answer with a bulleted list of the main points, one or two sentences each.",
        ("- **", "Here are the main points:\n\n- **", "Here are a few things to know:\n\n- "),
    ),
    "headed": ("Answer in three or four short sections, each under its own heading.", ("## ", "# ", "**")),
    "steps": ("Answer step by step as a numbered list.", ("1. ", "Here are the steps:\n\n1. ", "1. **")),
    "free": ("", ("",)),
}
STYLE_WEIGHTS = {"numbered": 6, "bulleted": 2, "headed": 2, "steps": 2}
SHARE_FREE = 0.12
ASKS_FOR_PARTS = re.compile(
    r"\b(list|what are|how|why|give|name|suggest|ideas?|tips|ways|describe|explain|compare|tell me|things|some|steps|"
    r"reasons|examples?|difference|benefits|best|recommend|plan|guide|facts)\b",
    re.IGNORECASE,
)


def choose_prompts(pool: Path, seed: int) -> list[dict[str, str]]:
    """The pool's permitted prompts with the style to ask for; benchmark prompts are left out."""
    rng = random.Random(seed)
    chosen = []
    for line in pool.open(encoding="utf-8"):
        record = json.loads(line)
        if record.get("benchmark") or record.get("split") == "val" or record.get("input"):
            continue
        instruction = record["instruction"].strip()
        if not 15 <= len(instruction) <= 300:
            continue
        structured = record["structure"] in STYLE_WEIGHTS
        asks = bool(ASKS_FOR_PARTS.search(instruction)) and len(record["output"]) > 200
        if structured and rng.random() < 0.5:
            style = record["structure"]
        elif structured or (asks and record["source"] != "gpteacher-roleplay"):
            style = rng.choices(list(STYLE_WEIGHTS), list(STYLE_WEIGHTS.values()))[0]
        elif rng.random() < SHARE_FREE:
            style = "free"
        else:
            continue
        origin = {key: record[key] for key in ("id", "source", "license")}
        chosen.append(origin | {"instruction": instruction, "style": style, "start": rng.choice(STYLES[style][1])})
    rng.shuffle(chosen)
    return chosen


def chat_text(tokenizer, prompt: dict[str, str]) -> str:
    content = f"{prompt['instruction']}\n\n{STYLES[prompt['style']][0]}".strip()
    messages = [{"role": "user", "content": content}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + prompt["start"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--model", required=True, help="folder or hub name of the base model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--max-tokens", type=int, default=320)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-k", type=int, default=40)
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="1 is none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    prompts = choose_prompts(args.pool, args.seed)
    done = set()
    if args.out.exists():
        done = {json.loads(line)["id"] for line in args.out.open(encoding="utf-8")}
    todo = [prompt for prompt in prompts if prompt["id"] not in done]
    print(f"{len(prompts)} prompts, {len(done)} done", flush=True)

    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval()
    with args.out.open("a", encoding="utf-8") as out:
        for start in range(0, len(todo), args.batch):
            batch = todo[start : start + args.batch]
            torch.manual_seed(args.seed ^ zlib.crc32(batch[0]["id"].encode()))
            inputs = tokenizer([chat_text(tokenizer, prompt) for prompt in batch], return_tensors="pt", padding=True)
            with torch.inference_mode():
                ids = model.generate(
                    **inputs,
                    max_new_tokens=args.max_tokens,
                    do_sample=True,
                    temperature=args.temperature,
                    top_k=args.top_k,
                    repetition_penalty=args.repetition_penalty,
                )
            for prompt, row in zip(batch, ids[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                finished = tokenizer.eos_token_id in row
                answer = row[: row.index(tokenizer.eos_token_id)] if finished else row
                record = prompt | {"output": prompt["start"] + tokenizer.decode(answer), "finished": finished}
                out.write(json.dumps(record) + "\n")
            out.flush()
            print(f"{start + len(batch)}/{len(todo)}", flush=True)


if __name__ == "__main__":
    main()
