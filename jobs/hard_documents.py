"""Documents at whose hardest token a model would most likely have broken the tag grammar: `grammar_weight` teaches from
these, and from others hardly anything.

    python jobs/hard_documents.py samples.jsonl --adapter pasta --num 200 --out hard.jsonl

Hardest is the token with the most probability masked away. Left out are documents where that is less than --least.
"""

import argparse
import json
import math
from pathlib import Path

import torch

from pasta_ray.engine.config import DEFAULT_MODEL
from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.train.config import SftConfig
from pasta_ray.train.data import Encoder, Record, collate, read_records
from pasta_ray.train.grammar import GrammarLoss
from pasta_ray.train.jsonl import to_line
from pasta_ray.train.loop import load_encoder, with_adapter
from pasta_ray.train.policy import Policy, load_policy


@torch.inference_mode()
def hardness(record: Record, policy: Policy, encoder: Encoder, grammar_loss: GrammarLoss) -> float:
    """The largest probability, of any of the document's labels, that the grammar's mask takes away."""
    example = encoder.encode(record)
    masked_away = grammar_loss(policy(collate([example])), [example])
    return 1 - math.exp(-masked_away.max().item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path, nargs="+", help="JSON lines with id, instruction and document")
    parser.add_argument("--adapter", type=Path, required=True, help="whose tags these are: a folder or a shipped name")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--least", type=float, default=0.05, help="probability masked away")
    parser.add_argument("--num", type=int, default=200, help="documents, the hardest first")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    config = with_adapter(
        SftConfig(
            name="hard", documents=args.documents, model=args.model, init_adapter=args.adapter, precision=args.precision
        )
    )
    encoder = load_encoder(config)
    assert isinstance(encoder.tokenizer, Tokenizer)
    policy, grammar_loss = load_policy(config, encoder).eval(), GrammarLoss(encoder.tokenizer)
    records = read_records(args.documents)
    graded = [(hardness(record, policy, encoder, grammar_loss), record) for record in records]
    graded.sort(key=lambda pair: pair[0], reverse=True)
    hard = [record for grade, record in graded if grade >= args.least]
    chosen = hard[: args.num]
    args.out.write_text("".join(to_line(record.model_dump(exclude_none=True)) for record in chosen), encoding="utf-8")
    print(json.dumps({"documents": len(records), "hard": len(hard), "chosen": len(chosen)}))


if __name__ == "__main__":
    main()
