"""A chat through the official client of the OpenAI API, whole and as a stream.

pip install openai; pasta-ray serve; python examples/openai_chat.py "Give me five tips for sleeping well."
"""

import argparse
from collections.abc import Sequence

from openai import OpenAI
from openai.types.chat import ChatCompletionUserMessageParam


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("question", nargs="?", default="Give me five tips for sleeping well.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="smollm2-pasta")
    parser.add_argument("--api-key", default="none", help="one of the service's, if it asks for keys")
    options = parser.parse_args(args)
    client = OpenAI(base_url=f"{options.url}/v1", api_key=options.api_key)
    chat: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": options.question}]

    answer = client.chat.completions.create(model=options.model, messages=chat, max_tokens=128)
    print(answer.choices[0].message.content)
    extra = answer.model_extra or {}  # what this service adds to OpenAI's answer
    parallel = extra["pasta"]["parallel"]
    print(f"-- {parallel['num_promises']} bodies, theoretical speedup {parallel['theoretical_speedup']:.2f}")

    # The same, streamed, and one token after the other: "pasta" holds this service's own options.
    sequential = {"pasta": {"method": "sequential"}}
    for chunk in client.chat.completions.create(
        model=options.model, messages=chat, max_tokens=128, stream=True, extra_body=sequential
    ):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
