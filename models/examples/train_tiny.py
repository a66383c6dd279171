"""Trains the checkpoint that ships with the project: a small OPT on Tiny Shakespeare.

    python -m optserve.models.examples.train_tiny OUT CORPUS [--minutes M]

A byte-level BPE vocabulary is learned from the first 90 % of the text, then a
``TFOPTForCausalLM`` through ``compile`` and ``fit``. The last 10 % is held out and its
loss reported in nats per character, which does not depend on the vocabulary. Runs on
two CPU cores; about ten minutes where nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..config import OPTConfig

VOCAB_SIZE = 1024
CONTEXT = 256  # tokens in a window, `</s>` included
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]  # OPT's ids 0 to 3
STEPS_PER_REPORT = 100


def tiny_config(dropout: float) -> OPTConfig:
    """The shipped model's architecture: 2.0 million parameters, pre-LN, tied head."""
    return OPTConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        num_hidden_layers=4,
        ffn_dim=768,
        num_attention_heads=6,
        max_position_embeddings=CONTEXT,
        word_embed_proj_dim=192,
        dropout=dropout,
        attention_dropout=0.0,
    )


def split(text: str) -> tuple[str, str]:
    """Training text (first 90 %) and held-out text (last 10 %)."""
    border = int(len(text) * 0.9)
    return text[:border], text[border:]


def train_tokenizer(text: str, directory: Path) -> None:
    """Learn the vocabulary and write it in OPT's file layout."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        [text],
        vocab_size=VOCAB_SIZE,
        min_frequency=2,
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    tokenizer.save_model(str(directory))
    config = {
        "add_bos_token": True,
        "add_prefix_space": False,
        "bos_token": "</s>",
        "eos_token": "</s>",
        "errors": "replace",
        "model_max_length": CONTEXT,
        "pad_token": "<pad>",
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": "</s>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def encode(text: str, directory: Path) -> np.ndarray:
    """Ids of a long text, nothing put before them."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer.from_file(
        str(directory / "vocab.json"), str(directory / "merges.txt")
    )
    lines = text.splitlines(keepends=True)
    encoded = tokenizer.encode_batch(lines)
    return np.concatenate([np.asarray(e.ids, np.int32) for e in encoded])


def windows(
    text: str, directory: Path, batch: int, seed: int
) -> Iterator[dict[str, np.ndarray]]:
    """Endless random windows ``[batch, CONTEXT]``, each beginning with ``</s>``."""
    rng = np.random.default_rng(seed)
    ids = encode(text, directory)
    while True:
        starts = rng.integers(0, len(ids) - CONTEXT, batch)
        rows = np.stack([ids[s : s + CONTEXT - 1] for s in starts])
        rows = np.pad(rows, ((0, 0), (1, 0)), constant_values=2)
        yield {"input_ids": rows, "labels": rows}


def nats_per_character(model, text: str, directory: Path, batch: int = 8) -> float:
    """Held-out loss: total negative log-likelihood over the number of characters.

    Windows overlap by half; each token is scored once, with at least half a window
    before it (the text's beginning aside).
    """
    import tensorflow as tf

    ids = encode(text, directory)
    half = CONTEXT // 2
    rows, masks = [], []
    for start in range(0, len(ids), half):
        begin = max(0, start - (half - 1))
        row = np.full(CONTEXT, 1, np.int32)
        part = np.concatenate([[2], ids[begin : start + half]])
        row[: len(part)] = part
        scored = np.zeros(CONTEXT, bool)
        scored[1 + start - begin : len(part)] = True
        rows.append(row)
        masks.append(scored)
    total = 0.0
    for i in range(0, len(rows), batch):
        x = tf.constant(np.stack(rows[i : i + batch]))
        mask = tf.cast(x != 1, tf.int32)
        logits = model(input_ids=x, attention_mask=mask, use_cache=False).logits
        nll = tf.nn.sparse_softmax_cross_entropy_with_logits(x[:, 1:], logits[:, :-1])
        scored = np.stack(masks[i : i + batch])[:, 1:]
        total += float(np.sum(nll.numpy(), where=scored))
    assert np.sum(masks) == len(ids)
    return total / len(text)


def train(
    corpus: Path,
    out: Path,
    *,
    init: Path | None,
    minutes: float,
    steps: int,
    batch: int,
    dropout: float,
    peak: float,
) -> float:
    """Train, evaluate and write the checkpoint; returns the held-out loss.

    ``init`` goes on from an earlier checkpoint of this script (a warm restart).

    The schedule is fixed in steps; ``minutes`` ends a run early on a slow machine, and
    the learning rate still falls to its end because it follows the clock or the step
    count, whichever is further.
    """
    import tensorflow as tf

    from ..tf.classes import TFOPTForCausalLM

    seed = 2 if init else 1
    tf.keras.utils.set_random_seed(seed)
    training_text, held_out = split(corpus.read_text(encoding="utf-8"))
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        config = tiny_config(dropout)
        if init:
            for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
                shutil.copy(init / name, work / name)
            model = TFOPTForCausalLM.from_pretrained(init, config=config)
        else:
            train_tokenizer(training_text, work)
            model = TFOPTForCausalLM(config)
        dataset = tf.data.Dataset.from_generator(
            lambda: windows(training_text, work, batch, seed),
            output_signature={
                name: tf.TensorSpec((batch, CONTEXT), tf.int32)
                for name in ("input_ids", "labels")
            },
        ).prefetch(4)
        model.compile(
            optimizer=tf.keras.optimizers.AdamW(
                peak, beta_2=0.98, weight_decay=0.05, clipnorm=1.0
            ),
            jit_compile=False,  # plain ops: oneDNN's matmuls win on CPU
        )
        model.fit(
            dataset,
            epochs=-(-steps // STEPS_PER_REPORT),
            steps_per_epoch=STEPS_PER_REPORT,
            callbacks=[_schedule(steps, minutes, peak)],
            verbose=2,  # a line with the mean loss of these steps
        )
        loss = nats_per_character(model, held_out, work)
        model.save_pretrained(work)
        if out.exists():
            for path in work.iterdir():
                os.replace(path, out / path.name)
        else:
            os.replace(work, out)
            os.chmod(out, 0o755)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return loss


def _schedule(steps: int, minutes: float, peak: float, warmup: int = 60):
    """A Keras callback: linear warm-up, then a cosine down to zero."""
    import tensorflow as tf

    class Schedule(tf.keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.begin = time.monotonic()
            self.step = 0

        def on_train_batch_begin(self, batch, logs=None):
            clock = (time.monotonic() - self.begin) / (60 * minutes)
            done = max(self.step / steps, clock)
            self.step += 1
            if done >= 1:
                self.model.stop_training = True
            cosine = 0.5 + 0.5 * math.cos(math.pi * min(done, 1))
            rate = min(self.step / warmup, cosine)
            optimizer: Any = self.model.optimizer
            optimizer.learning_rate = peak * rate

    return Schedule()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("corpus", type=Path, help="a text file to learn from")
    parser.add_argument("--init", type=Path, help="go on from this checkpoint")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    args = parser.parse_args()
    loss = train(
        args.corpus,
        args.out,
        init=args.init,
        minutes=args.minutes,
        steps=args.steps,
        batch=args.batch,
        dropout=args.dropout,
        peak=args.learning_rate,
    )
    print(json.dumps({"held_out_nats_per_character": round(loss, 4)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
