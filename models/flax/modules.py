"""OPT as ``flax.linen`` modules over ``model.py``: parameters, cache, forward pass.

The ``params`` tree has Transformers' names (``model/decoder/layers/0/fc1/kernel``),
with dense kernels [in, out].
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ..config import OPTConfig
from ..outputs import FlaxBaseModelOutput, FlaxCausalLMOutput
from ..weights import params_from_weights, weight_shapes
from . import model as flax_opt
from .params import Tree, by_path, random_params, tree_path, tree_shape


class OPTModule(nn.Module):
    """The linen module: the params tree, the cache collection, the forward pass."""

    config: OPTConfig
    dtype: Any = jnp.float32
    remat: bool = False

    head = False

    def _weights(self) -> dict[str, Any]:
        """Weights by canonical name, in the computation's dtype."""
        config, roots = self.config, ["decoder"]
        if self.head:
            roots = ["model"] if config.tie_word_embeddings else ["model", "lm_head"]

        def fresh(rng: Any, root: str) -> Tree:
            return random_params(config, rng, head=self.head)[root]

        def held(root: str) -> Tree:
            if self.has_variable("params", root):  # ``param`` would trace ``fresh``
                return self.get_variable("params", root)
            return self.param(root, fresh, root)

        tree = by_path({root: held(root) for root in roots})
        weights = {}
        for name, shape in weight_shapes(config, head=self.head).items():
            path = tree_path(name, head=self.head)
            if tree[path].shape != (expected := tree_shape(name, shape)):
                raise ValueError(
                    f"{'/'.join(path)} in params should have the shape {expected}, "
                    f"got {tree[path].shape}"
                )
            value = tree[path].T if path[-1] == "kernel" else tree[path]
            if path[-2].endswith("norm"):  # computed in float32 anyway
                weights[name] = value
            else:
                weights[name] = value.astype(self.dtype)
        return weights

    @nn.compact
    def nested_params(self) -> dict[str, Any]:
        """The weights as the pure functions take them."""
        return params_from_weights(self.config, self._weights())

    @nn.compact
    def __call__(
        self,
        input_ids,
        attention_mask=None,
        position_ids=None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        init_cache: bool = False,
        deterministic: bool = True,
    ):
        """As the model's call, on plain arrays; a ``cache`` collection is used if there
        is one, and made from the mask's shape by ``init_cache``."""
        config = self.config
        params = params_from_weights(config, self._weights())
        B, S = input_ids.shape
        if attention_mask is None:
            attention_mask = jnp.ones([B, S], jnp.int32)
        cached = self.has_variable("cache", "layers")
        start, past, store = 0, None, flax_opt.append
        if cached or init_cache:
            layers = self.variable(
                "cache",
                "layers",
                empty_cache,
                config,
                *attention_mask.shape,
                self.dtype,
            )
            index = self.variable("cache", "index", jnp.zeros, [], jnp.int32)
            start, past = index.value, layers.value
            store = partial(update, start)
        if position_ids is None:
            if cached:
                raise ValueError("give position_ids along with past_key_values")
            position_ids = flax_opt.positions_from_mask(attention_mask)[:, :S]
        hidden = flax_opt.embed(
            config,
            params,
            flax_opt.take(params["embed_tokens"], input_ids),
            position_ids,
        )
        decoded = flax_opt.decoder(
            config,
            params,
            hidden,
            flax_opt.causal_mask(attention_mask, S, start),
            past=past,
            store=store,
            rng=None if deterministic else self.make_rng("dropout"),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            run=flax_opt.scan_layers if self.remat else flax_opt.run_layers,
        )
        if cached:
            layers.value, index.value = decoded.cache, start + S
        output = self._output(params, decoded)
        return output if return_dict else output.to_tuple()

    def _output(self, params, decoded):
        raise NotImplementedError


class FlaxOPTModule(OPTModule):
    """The decoder without a head."""

    def _output(self, params, decoded):
        return FlaxBaseModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            hidden_states=decoded.hidden_states,
            attentions=decoded.attentions,
        )


class FlaxOPTForCausalLMModule(OPTModule):
    """The decoder with its head."""

    head = True

    def _output(self, params, decoded):
        return FlaxCausalLMOutput(
            logits=flax_opt.lm_logits(self.config, params, decoded.last_hidden_state),
            hidden_states=decoded.hidden_states,
            attentions=decoded.attentions,
        )


def empty_cache(config: OPTConfig, B: int, T: int, dtype: Any) -> list[Any]:
    """L pairs of keys and values [B,H,T,D], all zero."""
    size = (B, config.num_attention_heads, T, config.head_dim)
    zero = partial(jnp.zeros, size, dtype)
    return [(zero(), zero()) for _ in range(config.num_hidden_layers)]


def update(start: Any, past: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
    """The cache of a fixed length (a ``Store``): k, v are written from ``start`` on."""
    at = (0, 0, start, 0)
    keys = jax.lax.dynamic_update_slice(past[0], k.astype(past[0].dtype), at)
    values = jax.lax.dynamic_update_slice(past[1], v.astype(past[1].dtype), at)
    return keys, values, (keys, values)
