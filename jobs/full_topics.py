"""Documents with a topic of as many words as the grammar allows: where a model that has nearly learnt the grammar still
breaks it, by going on to the next word of a title. `grammar_weight` teaches it from these.

    python jobs/full_topics.py samples.jsonl annotated.jsonl --num 4 --out documents.jsonl

Left out are samples that were cut off, and a document that is there already.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Literal

from pasta_ray.lang import Promise
from pasta_ray.lang.document import MAX_TOPIC_WORDS
from pasta_ray.train.data import Record
from pasta_ray.train.jsonl import read_models, to_line


class Candidate(Record):
    """A sample, or an annotated document, which has neither of these and is whole."""

    prompt_id: str | None = None
    finish_reason: Literal["stop", "length"] = "stop"


def is_full(record: Record) -> bool:
    promises = (node for node in record.parsed().nodes if isinstance(node, Promise))
    return any(len(promise.topic.split()) == MAX_TOPIC_WORDS for promise in promises)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path, nargs="+", help="samples or annotated answers, JSON lines")
    parser.add_argument("--num", type=int, default=4, help="documents of each prompt")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    candidates = [candidate for path in args.documents for _, candidate in read_models(path, Candidate)]
    by_prompt: dict[str, dict[str, Candidate]] = defaultdict(dict)
    for candidate in candidates:
        chosen = by_prompt[candidate.prompt_id or candidate.id]
        if candidate.finish_reason == "stop" and len(chosen) < args.num and is_full(candidate):
            chosen.setdefault(candidate.document, candidate)
    fields = Record.model_fields.keys()
    documents = [document for chosen in by_prompt.values() for document in chosen.values()]
    lines = [document.model_dump(include=fields, exclude_none=True) for document in documents]
    args.out.write_text("".join(map(to_line, lines)), encoding="utf-8")
    print(json.dumps({"documents": len(candidates), "chosen": len(lines)}))


if __name__ == "__main__":
    main()
