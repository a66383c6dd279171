"""Makes ``recorded.json`` with transformers' own classes (once, with 4.57.6).

    python -m tests.models.generation.make_recorded     # as for make test-reference

The weights are those of ``kinds.random_weights``. The Flax class has no contrastive
search and ignores some rules: there the TensorFlow class's tokens are recorded,
followed by padding up to the full length, as the Flax class has it.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf
import transformers
from optserve.models.checkpoints import save_weights

from ..kinds import padded, random_weights, small_config, tokens

OPTIONS = {
    "greedy": {"max_new_tokens": 12},
    "beams": {"max_new_tokens": 9, "num_beams": 3, "num_return_sequences": 2},
    "beams, early": {
        "max_new_tokens": 9,
        "num_beams": 4,
        "early_stopping": True,
        "length_penalty": 0.5,
        "eos_token_id": 12,
    },
    "rules": {
        "max_new_tokens": 9,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "bad_words_ids": [[43], [29, 12]],
        "min_length": 10,
        "suppress_tokens": [51],
        "begin_suppress_tokens": [29],
        "forced_eos_token_id": 2,
    },
    "contrastive": {"max_new_tokens": 9, "penalty_alpha": 0.6, "top_k": 4},
}
ONE_ROW = {"rules", "contrastive"}
"""Where upstream takes padding for tokens: its rows are generated one by one."""


def new_tokens(model, ids, mask, **options):
    output = model.generate(
        tf.constant(ids, tf.int32),
        attention_mask=tf.constant(mask, tf.int32),
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    return output.sequences.numpy()[:, ids.shape[1] :], output


def row_by_row(model, ids, mask, options):
    rows = []
    for row, real in zip(ids, mask, strict=True):
        row = row[real == 1][None]
        shorter = ids.shape[1] - row.shape[1]
        mine = options.copy()
        if "min_length" in mine:
            mine["min_length"] -= shorter
        new, _ = new_tokens(model, row, np.ones_like(row), **mine)
        rows.append(new[0].tolist())
    longest = max(map(len, rows))
    return [row + [1] * (longest - len(row)) for row in rows]


def main() -> None:
    config = small_config()
    mask = padded([6, 4, 1], 6, "left")
    ids = np.where(mask, tokens(config, 3, 6, seed=1), 1)
    recorded = {}
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        for format in ("h5", "msgpack"):
            save_weights(folder, random_weights(config).items(), format=format)
        ours = transformers.TFOPTForCausalLM.from_pretrained(folder)
        flax = transformers.FlaxOPTForCausalLM.from_pretrained(folder)
    for name, options in OPTIONS.items():
        entry = recorded[name] = {"options": options, "tf": {}, "flax": {}}
        full = options["max_new_tokens"]
        if name in ONE_ROW:
            rows = row_by_row(ours, ids, mask, options)
            entry["tf"]["tokens"] = rows
            entry["flax"]["tokens"] = [r + [1] * (full - len(r)) for r in rows]
            continue
        new, output = new_tokens(ours, ids, mask, **options)
        entry["tf"]["tokens"] = new.tolist()
        if "num_beams" in options:
            entry["tf"]["scores"] = output.sequences_scores.numpy().tolist()
            entry["tf"]["beam_indices"] = output.beam_indices.numpy().tolist()
            largest = [np.max(step, 1).tolist() for step in output.scores]
            entry["tf"]["largest"] = largest
        output = flax.generate(ids, attention_mask=mask, **options)
        entry["flax"]["tokens"] = np.asarray(output.sequences)[:, 6:].tolist()
        if "num_beams" in options:
            entry["flax"]["scores"] = np.asarray(output.scores).tolist()
    file = Path(__file__).with_name("recorded.json")
    file.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
