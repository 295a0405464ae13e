"""A chat through the official client of the OpenAI API, whole and as a stream.

pip install openai; pasta-ray serve; python examples/openai_chat.py "Give me five tips for sleeping well."
"""

import argparse
from collections.abc import Sequence

from openai import OpenAI


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("question", nargs="?", default="Give me five tips for sleeping well.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="smollm2-pasta")
    parser.add_argument("--api-key", default="none", help="one of the service's, if it asks for keys")
    options = parser.parse_args(args)
    client = OpenAI(base_url=f"{options.url}/v1", api_key=options.api_key)
    chat = [{"role": "user", "content": options.question}]

    answer = client.chat.completions.create(model=options.model, messages=chat, max_tokens=128)
    print(answer.choices[0].message.content)
    parallel = answer.model_extra["pasta"]["parallel"]  # what this service adds to OpenAI's answer
    print(f"-- {parallel['num_promises']} bodies, theoretical speedup {parallel['theoretical_speedup']:.2f}")

    # The same, streamed, and one token after the other: "pasta" holds this service's own options.
    sequential = {"pasta": {"method": "sequential"}}
    with client.chat.completions.create(
        model=options.model, messages=chat, max_tokens=128, stream=True, extra_body=sequential
    ) as stream:
        for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
