"""A byte-level tokenizer for the golden models' 128 ids: one token per character."""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

CHARACTERS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;!?'-\n(){}[]/é"
)


def small_tokenizer() -> tokenizers.Tokenizer:
    """Ids 0 to 3 are ``<s> <pad> </s> <unk>``; single bytes follow."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ((letters, _),) = split.pre_tokenize_str(CHARACTERS)
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for letter in letters:
        vocabulary.setdefault(letter, len(vocabulary))
    core = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    core.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    core.pre_tokenizer = split
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", 2)]
    )
    return core


SMALL_TOKENIZER = small_tokenizer().to_str()
