"""Made ``data/tokenizer_ids.json``, once, with transformers 4.57.6.

    python tests/make_tokenizer_ids.py     # in an environment with transformers<5

The reference is the slow ``GPT2Tokenizer`` with the settings of the OPT checkpoints
(``tokenizer_config.json``), over ``data/opt-tokenizer``. An entry has a text, its ids,
and what the reference decodes from them, special tokens kept and skipped.
"""

import json
import random
from pathlib import Path

from transformers import AddedToken, GPT2Tokenizer

DATA = Path(__file__).parent / "data"

TEXTS = [
    *("", " ", "  ", "\n", "\n\n", "\t", " \n ", "\r\n", "\u00a0", "\u3000", "a" * 500),
    *(
        "Hello, my dog",
        "Hello, my dog is cute",
        " leading",
        "trailing ",
        "double  space",
    ),
    *("don't can't I'll we've I'm you're he'd it's", "DON'T CAN'T I'LL", "'s 't 're"),
    *("1234567890", "3.14159", "1,000,000", "2026-11-22T16:00:00Z", "0x7fff", "½ ² ³"),
    *("</s>", "<pad>", "<s>", "<unk>", "<mask>", "a</s>b", "a </s> b", "</s></s>"),
    *(
        "<pad><pad>x",
        "x<pad>",
        "</S>",
        "< /s>",
        "</s",
        "  </s>  ",
        "\n</s>\n",
        "é</s>é",
    ),
    *("<|endoftext|>", "madeupword0000", "madeupword0001 madeupword0002", "<mask>x"),
    *(
        "naïve café résumé",
        "nai\u0308ve cafe\u0301",
        "Straße",
        "İstanbul",
        "ﬁ ﬂ",
        "Ωμέγα",
    ),
    *("Привет, мир!", "Здравствуйте, как дела?", "مرحبا بالعالم", "שלום עולם", "नमस्ते"),
    *(
        "สวัสดีชาวโลก",
        "こんにちは世界",
        "你好，世界",
        "안녕하세요 세계",
        "Xin chào thế giới",
    ),
    *("Γειά σου Κόσμε", "ሰላም ልዑል", "வணக்கம்", "გამარჯობა", "Բարեւ", "བོད་ཡིག", "ᚠᛇᚻ"),
    *(
        "😀",
        "😀😀",
        "👩‍👩‍👧‍👦",
        "🏳️‍🌈",
        "👍🏽",
        "🇩🇪🇫🇷",
        "a😀b",
        " 😀 ",
        "☃️",
        "©®™",
        "𝔘𝔫𝔦",
    ),
    *("\u200b", "\u200d", "\ufeff", "\u202e", "\ufffd", "\x00", "\x07", "\x7f", "\x85"),
    *("\U0010ffff", "\ue000", "\u2028", "\u2029", "\x1c\x1d\x1e\x1f", "\v\f"),
    *(
        "def f(x):\n    return x + 1\n",
        "for(int i=0;i<n;++i){a[i]^=b;}",
        "if (a && b || !c)",
    ),
    *(
        "\tindented\n\t\ttwice",
        "x = {'a': [1, 2], \"b\": None}",
        '<div class="x">é</div>',
    ),
    *(
        "SELECT * FROM t WHERE a <> 'b';",
        "https://example.org/a?b=c&d=%20#e",
        "C:\\dir\\f",
    ),
    *(
        "user@example.org",
        "#include <stdio.h>",
        "```python\nprint()\n```",
        "$\\frac{1}{2}$",
    ),
    *(
        "ALL CAPS TEXT",
        "CamelCaseWord",
        "snake_case_word",
        "kebab-case-word",
        "a.b.c.d",
    ),
    *(
        "...",
        "....",
        "!!!???",
        "--",
        "—",
        "–",
        "“quoted”",
        "‘single’",
        "«guillemets»",
        "…",
    ),
    *("()[]{}<>", "@#$%^&*", "~`|\\", "a  b   c    d", "a\n\n\nb", "a \n b", "a\t\tb"),
    *(
        "Today, I was in the middle of a conversation with a friend about the",
        " a b c ",
    ),
    "In the city of New York, the city",
    "It was a bright cold day in April, and the clocks were striking thirteen.\n\n" * 3,
    "The quick brown fox jumps over the lazy dog. " * 20,
]


def random_texts(count: int) -> list[str]:
    """Mixtures of everything above and of arbitrary characters."""
    rng = random.Random(20260101)
    ranges = [
        (32, 126),
        (0xA0, 0x24F),
        (0x370, 0x5FF),
        (0x900, 0xDFF),
        (0x3040, 0x30FF),
    ]
    ranges += [(0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (0x2000, 0x206F), (0, 32)]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 6)):
            if rng.random() < 0.4:
                parts.append(rng.choice(TEXTS)[:60])
            else:
                low, high = rng.choice(ranges)
                letters = (
                    chr(rng.randint(low, high)) for _ in range(rng.randint(1, 9))
                )
                parts.append("".join(letters))
        texts.append("".join(parts))
    return texts


def shakespeare(count: int) -> list[str]:
    """Pieces of a real text, cut anywhere."""
    rng = random.Random(7)
    text = (DATA / "tinyshakespeare.txt").read_text(encoding="utf-8")
    starts = [rng.randrange(len(text) - 300) for _ in range(count)]
    return [text[start : start + rng.randint(1, 300)] for start in starts]


def main() -> None:
    """Write the file."""

    def special(content: str) -> AddedToken:
        return AddedToken(content, normalized=True, special=True)

    tokenizer = GPT2Tokenizer(
        DATA / "opt-tokenizer" / "vocab.json",
        DATA / "opt-tokenizer" / "merges.txt",
        bos_token=special("</s>"),
        eos_token=special("</s>"),
        unk_token=special("</s>"),
        pad_token=special("<pad>"),
        add_bos_token=True,
        clean_up_tokenization_spaces=False,
    )
    entries = []
    for text in [*TEXTS, *random_texts(150), *shakespeare(60)]:
        ids = tokenizer(text)["input_ids"]
        entries.append(
            {
                "text": text,
                "ids": ids,
                "kept": tokenizer.decode(ids, spaces_between_special_tokens=False),
                "skipped": tokenizer.decode(
                    ids, skip_special_tokens=True, spaces_between_special_tokens=False
                ),
            }
        )
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (DATA / "tokenizer_ids.json").write_text(f"[\n{lines}\n]\n", encoding="ascii")
    print(len(entries), "texts")


if __name__ == "__main__":
    main()
