"""``/tokenize``, ``/detokenize`` and ``/tokenizer_info``, as vLLM has them."""

from __future__ import annotations

from .api_errors import bad_field
from .bodies import DetokenizeBody, TokenizeBody
from .completions import Json
from .served import Served


async def tokenize(body: TokenizeBody, served: Served) -> Json:
    """The ids of a text."""
    tokens = await served.encode(body.prompt, special=body.add_special_tokens)
    answer: Json = {
        "tokens": tokens,
        "count": len(tokens),
        "max_model_len": served.positions,
    }
    if body.return_token_strs:
        answer["token_strs"] = [served.piece(token) for token in tokens]
    return answer


def detokenize(body: DetokenizeBody, served: Served) -> Json:
    """The text of ids."""
    most = served.manifest.vocab_size
    if wrong := [token for token in body.tokens if token >= most]:
        raise bad_field("tokens", f"ids must be below {most}, got {wrong[0]}")
    return {"prompt": served.text(body.tokens)}


def tokenizer_info(served: Served) -> Json:
    """The special tokens as text."""
    tokenizer = served.tokenizer
    ids = {
        "bos_token": tokenizer.bos_token_id,
        "eos_token": tokenizer.eos_token_id,
        "pad_token": tokenizer.pad_token_id,
    }
    return {name: served.piece(token) for name, token in ids.items()}
