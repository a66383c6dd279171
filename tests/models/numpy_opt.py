"""OPT in plain numpy, float64, written from the specification alone.

Nothing here is shared with the code under test. Rows are computed one by one and heads
one by one, so that no broadcasting rule is common to both.
"""

from __future__ import annotations

from math import erf

import numpy as np


def forward(
    config,
    weights,
    input_ids=None,
    attention_mask=None,
    position_ids=None,
    head_mask=None,
    inputs_embeds=None,
):
    """Outputs of a whole sequence: a dict of ``last_hidden_state``, ``logits``,
    ``hidden_states`` (L+1), ``attentions`` (L), ``keys`` and ``values`` (L)."""
    weights = {name: np.asarray(w, np.float64) for name, w in weights.items()}
    if inputs_embeds is None:
        inputs_embeds = weights["decoder.embed_tokens.weight"][input_ids]
    B, S = inputs_embeds.shape[:2]
    if attention_mask is None:
        attention_mask = np.ones([B, S], int)
    rows = [
        _row(
            config,
            weights,
            np.asarray(inputs_embeds[b], np.float64),
            attention_mask[b],
            _positions(attention_mask[b]) if position_ids is None else position_ids[b],
            head_mask,
        )
        for b in range(B)
    ]
    joined = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if isinstance(values[0], list):
            joined[name] = [np.stack(layer) for layer in zip(*values, strict=True)]
        else:
            joined[name] = np.stack(values)
    return joined


def loss(logits, labels):
    """Mean next-token cross entropy over the labels that are not −100."""
    total, count = 0.0, 0
    for row, expected in zip(logits, labels, strict=True):
        for t in range(len(expected) - 1):
            if expected[t + 1] != -100:
                total -= _log_softmax(row[t])[expected[t + 1]]
                count += 1
    return total / count


def _positions(mask):
    seen, positions = 0, []
    for kept in mask:
        seen += int(kept)
        positions.append(seen - 1 if kept else -1)
    return positions


def _row(config, weights, embeds, mask, positions, head_mask):
    S, H = len(embeds), config.num_attention_heads
    D = config.hidden_size // H

    def get(name):
        return weights.get(f"decoder.{name}")

    def dense(name, x):
        y = x @ get(f"{name}.weight").T
        bias = get(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(name, x):
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        weight = get(f"{name}.weight")
        return y if weight is None else y * weight + get(f"{name}.bias")

    x = embeds
    if get("project_in.weight") is not None:
        x = dense("project_in", x)
    x = x + np.stack([get("embed_positions.weight")[p + 2] for p in positions])
    hidden, attentions, keys, values = [x], [], [], []
    for i in range(config.num_hidden_layers):
        layer = f"layers.{i}"
        residual = x
        if config.do_layer_norm_before:
            x = norm(f"{layer}.self_attn_layer_norm", x)
        q = dense(f"{layer}.self_attn.q_proj", x) * D**-0.5
        k = dense(f"{layer}.self_attn.k_proj", x)
        v = dense(f"{layer}.self_attn.v_proj", x)
        context, probs = np.zeros_like(q), np.zeros([H, S, S])
        for h in range(H):
            part = slice(h * D, (h + 1) * D)
            for s in range(S):
                allowed = [t for t in range(s + 1) if mask[t]]
                if allowed:
                    scores = k[allowed, part] @ q[s, part]
                    probs[h, s, allowed] = np.exp(_log_softmax(scores))
                else:  # not specified beyond being finite
                    probs[h, s] = 1 / S
            if head_mask is not None:
                probs[h] *= head_mask[i][h]
            context[:, part] = probs[h] @ v[:, part]
        x = residual + dense(f"{layer}.self_attn.out_proj", context)
        if not config.do_layer_norm_before:
            x = norm(f"{layer}.self_attn_layer_norm", x)
        residual = x
        if config.do_layer_norm_before:
            x = norm(f"{layer}.final_layer_norm", x)
        x = dense(f"{layer}.fc1", x)
        if config.activation_function == "relu":
            x = np.maximum(x, 0)
        else:
            x = x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))
        x = residual + dense(f"{layer}.fc2", x)
        if not config.do_layer_norm_before:
            x = norm(f"{layer}.final_layer_norm", x)
        hidden.append(x)
        attentions.append(probs)
        keys.append(k.reshape(S, H, D).transpose(1, 0, 2))
        values.append(v.reshape(S, H, D).transpose(1, 0, 2))
    if config.do_layer_norm_before and not config._remove_final_layer_norm:
        x = norm("final_layer_norm", x)
    if get("project_out.weight") is not None:
        x = dense("project_out", x)
    hidden[-1] = x
    head = weights.get("lm_head.weight", get("embed_tokens.weight"))
    return {
        "last_hidden_state": x,
        "logits": x @ head.T,
        "hidden_states": hidden,
        "attentions": attentions,
        "keys": keys,
        "values": values,
    }


def _log_softmax(x):
    x = x - x.max()
    return x - np.log(np.exp(x).sum())
