"""What every branch of an answer writes, while it writes it: typed events of the service.

pasta-ray serve; python examples/typed_events.py "Give me five tips for sleeping well."
"""

import argparse
from collections.abc import Sequence

from pasta_ray.client import Client, Close, Delta, Promise, Report, Sync


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("question", nargs="?", default="Give me five tips for sleeping well.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="smollm2-pasta")
    parser.add_argument("--api-key")
    options = parser.parse_args(args)

    written: dict[str, str] = {}
    with Client(options.url, options.api_key) as client:
        for event in client.events(options.question, options.model, max_tokens=128):
            match event:
                case Promise(branch=branch, topic=topic, tokens_predicted=num_tokens):
                    print(f"{branch} begins: {topic}, about {num_tokens} tokens")
                case Delta(branch=branch, text=text):
                    written[branch] = written.get(branch, "") + text
                case Close(branch=branch, finish_reason=reason):
                    print(f"{branch} ends ({reason}): {written.get(branch, '')!r}")
                case Sync():
                    print("0 waits for nobody any more: it sees all of them")
                case Report(text=text, body=report):
                    print(f"\n{text}\n")
                    print(f"critical path {report['parallel']['critical_path']} steps, {report['usage']}")


if __name__ == "__main__":
    main()
