"""Log-probabilities in the two shapes that the OpenAI API has for them."""

from collections.abc import Sequence
from typing import Any

from pasta_ray.engine.messages import Likelihood
from pasta_ray.engine.reading import ReadToken


def chat_logprobs(tokens: Sequence[ReadToken]) -> dict[str, Any]:
    """Of a chat's choice. All tokens' ``bytes`` together are the text's; ``token`` is for reading."""
    content = [
        _entry(token.likelihood.token, token.likelihood.logprob)
        | {"top_logprobs": [_entry(written, logprob) for written, logprob in token.likelihood.likeliest]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: Sequence[ReadToken]) -> dict[str, Any]:
    """Of a completion's choice, in parallel lists. ``top_logprobs`` has the token itself, likely or not; of tokens that
    read alike, the likeliest."""
    likelihoods = [token.likelihood for token in tokens]
    return {
        "tokens": [readable(likelihood.token) for likelihood in likelihoods],
        "token_logprobs": [likelihood.logprob for likelihood in likelihoods],
        "top_logprobs": [_by_text(likelihood) for likelihood in likelihoods],
        "text_offset": [token.offset for token in tokens],
    }


def _by_text(likelihood: Likelihood) -> dict[str, float]:
    shown: dict[str, float] = {}
    for written, logprob in (*likelihood.likeliest, (likelihood.token, likelihood.logprob)):
        shown.setdefault(readable(written), logprob)
    return shown


def readable(written: bytes) -> str:
    r"""The token's text; a piece of a character as OpenAI writes it, ``\xe2\x80``."""
    try:
        return written.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in written)


def _entry(written: bytes, logprob: float) -> dict[str, Any]:
    return {"token": readable(written), "logprob": logprob, "bytes": list(written)}
