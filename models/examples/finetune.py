"""Fine-tunes a checkpoint on a text file, with either framework.

    python -m optserve.models.examples.finetune CHECKPOINT TEXT OUT [--framework tf|jax]

An example to copy from, short on purpose: random windows of the text, AdamW, and the
loss on its last tenth before and after. Both frameworks see the same windows.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoints import resolve
from ..config import OPTConfig
from ..tokenizer import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class Plan:
    """How long, how fast, and on how much at a time."""

    steps: int = 50
    batch: int = 8
    length: int = 128  # tokens in a window
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    seed: int = 0

    def windows(self, ids: np.ndarray) -> Iterator[np.ndarray]:
        """``steps`` batches [batch, length] of random windows."""
        rng = np.random.default_rng(self.seed)
        for _ in range(self.steps):
            starts = rng.integers(0, len(ids) - self.length + 1, self.batch)
            yield np.stack([ids[s : s + self.length] for s in starts])

    def held_out(self, ids: np.ndarray) -> np.ndarray:
        """At most two batches of windows side by side."""
        rows = min(len(ids) // self.length, 2 * self.batch)
        return ids[: rows * self.length].reshape(rows, self.length)


def tune_tf(checkpoint: Path, train: np.ndarray, test: np.ndarray, plan: Plan):
    """Keras: ``compile`` without a loss, then batch by batch. Model, losses before and
    after on ``test``, losses on the way."""
    import keras

    from ..tf.classes import TFOPTForCausalLM

    keras.utils.set_random_seed(plan.seed)
    model = TFOPTForCausalLM.from_pretrained(checkpoint)
    model.compile(
        keras.optimizers.AdamW(plan.learning_rate, weight_decay=plan.weight_decay)
    )
    rows = {"input_ids": test, "labels": test}
    before = model.evaluate(rows, batch_size=len(test), verbose=0)
    losses: list[float] = []
    for ids in plan.windows(train):
        losses.append(float(model.train_on_batch({"input_ids": ids, "labels": ids})))
        model.reset_metrics()
    after = model.evaluate(rows, batch_size=len(test), verbose=0)
    return model, (before, after), losses


def tune_jax(checkpoint: Path, train: np.ndarray, test: np.ndarray, plan: Plan):
    """JAX: a jitted step with optax. Results as :func:`tune_tf`."""
    import jax
    import jax.numpy as jnp
    import optax

    from ..flax.classes import FlaxOPTForCausalLM
    from ..flax.model import token_losses

    model = FlaxOPTForCausalLM.from_pretrained(checkpoint, dtype=jnp.float32)
    optimizer = optax.adamw(
        plan.learning_rate, eps=1e-7, weight_decay=plan.weight_decay
    )

    def loss(params: Any, ids: Any, key: Any = None) -> Any:
        logits = model(
            ids, params=params, dropout_rng=key, deterministic=key is None
        ).logits
        losses, counts = token_losses(logits, ids)
        return jnp.sum(losses * counts) / jnp.sum(counts)

    @jax.jit
    def step(params: Any, state: Any, ids: Any, key: Any) -> tuple[Any, Any, Any]:
        value, gradients = jax.value_and_grad(loss)(params, ids, key)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    evaluate = jax.jit(loss)
    before = float(evaluate(model.params, test))
    params = model.to_fp32(model.params)
    state = optimizer.init(params)
    key = jax.random.PRNGKey(plan.seed)
    losses: list[float] = []
    for i, batch in enumerate(plan.windows(train)):
        params, state, value = step(params, state, batch, jax.random.fold_in(key, i))
        losses.append(float(value))
    model.params = params
    return model, (before, float(evaluate(params, test))), losses


TUNE = {"tf": tune_tf, "jax": tune_jax}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="a directory or a hub id")
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--framework", choices=TUNE, default="tf")
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--batch", type=int, default=Plan.batch)
    parser.add_argument("--length", type=int, default=Plan.length)
    parser.add_argument("--learning-rate", type=float, default=Plan.learning_rate)
    args = parser.parse_args()
    checkpoint = resolve(args.checkpoint)
    limit = OPTConfig.from_pretrained(checkpoint).max_position_embeddings
    plan = Plan(args.steps, args.batch, min(args.length, limit), args.learning_rate)
    tokenizer = Tokenizer.from_directory(checkpoint)
    ids = np.asarray(tokenizer.encode(args.text.read_text(encoding="utf-8")), np.int32)
    border = len(ids) * 9 // 10
    if len(ids) - border < plan.length:
        parser.error(f"{args.text} is too short: a tenth of it should fill a window")
    train, test = ids[:border], plan.held_out(ids[border:])
    model, (before, after), losses = TUNE[args.framework](checkpoint, train, test, plan)
    model.save_pretrained(args.out)
    for name in TOKENIZER_FILES:
        if (checkpoint / name).exists():
            shutil.copy(checkpoint / name, args.out / name)
    report = {"before": before, "after": after, "last_step": losses[-1]}
    print(json.dumps({name: round(value, 4) for name, value in report.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
