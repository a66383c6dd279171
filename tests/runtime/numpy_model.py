"""The graph contract over a tiny OPT in numpy: independent of every exporter.

Written from the published architecture (https://arxiv.org/abs/2205.01068) for tests.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from optserve.models.checkpoints import open_weights
from optserve.models.generation.sampling import log_softmax
from optserve.runtime import Client
from optserve.runtime.contract import (
    TOP_LOGPROBS,
    Manifest,
    SignatureSpec,
    generate_name,
    session_names,
    signature,
    tokens_per_call,
)
from optserve.runtime.errors import IncompatibleModel, VersionGone
from optserve.runtime.sampling import Sampling, choose, likeliest
from optserve.runtime.transports.base import AsyncTransport, Call, Reply, Transport

from tests.runtime.numpy_sessions import NumpySessions

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def _norm(x, w, name):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    y = (x - mean) / np.sqrt(var + 1e-5)
    return y * w[name + ".weight"] + w[name + ".bias"] if name + ".weight" in w else y


def _linear(x, w, name):
    y = x @ w[name + ".weight"].T
    return y + w[name + ".bias"] if name + ".bias" in w else y


_erf = np.vectorize(math.erf, otypes=[np.float32])


class NumpyOPT:
    """One row at a time, cache ``[C, L, 2, H, D]``."""

    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "config.json").read_text())
        self.weights = {k: np.array(v) for k, v in open_weights(directory).items()}
        self._computed = functools.lru_cache(3000)(self._hidden)

    def hidden(self, ids: np.ndarray, cache: np.ndarray) -> tuple[np.ndarray, ...]:
        """Last hidden states ``[S, E]`` and the new cache rows.

        Kept, since a test asks for the same in several ways.
        """
        rows = cache.astype(np.float32)
        return self._computed(tuple(ids), rows.tobytes(), rows.shape)

    def _hidden(
        self, tokens: tuple[int, ...], rows: bytes, shape: tuple[int, ...]
    ) -> tuple[np.ndarray, ...]:
        ids, cache = np.array(tokens), np.frombuffer(rows, np.float32).reshape(shape)
        c, w = self.config, self.weights
        heads, size = c["num_attention_heads"], c["hidden_size"]
        past, count = len(cache), len(ids)
        x = w["decoder.embed_tokens.weight"][ids]
        if "decoder.project_in.weight" in w:
            x = _linear(x, w, "decoder.project_in")
        x = x + w["decoder.embed_positions.weight"][np.arange(past, past + count) + 2]
        new = np.zeros((count, *cache.shape[1:]), np.float32)
        before = c["do_layer_norm_before"]
        mask = np.arange(past + count)[None] <= past + np.arange(count)[:, None]
        for i in range(c["num_hidden_layers"]):
            p = f"decoder.layers.{i}."
            y = _norm(x, w, p + "self_attn_layer_norm") if before else x
            q, k, v = (
                _linear(y, w, f"{p}self_attn.{n}_proj").reshape(count, heads, -1)
                for n in "qkv"
            )
            new[:, i, 0], new[:, i, 1] = k, v
            k, v = (np.concatenate([cache[:, i, j], new[:, i, j]]) for j in (0, 1))
            logits = np.einsum("shd,thd->hst", q, k) / np.sqrt(size // heads)
            weights = np.exp(log_softmax(np.where(mask, logits, -np.inf)))
            y = np.einsum("hst,thd->shd", weights, v).reshape(count, size)
            x = x + _linear(y, w, p + "self_attn.out_proj")
            x = x if before else _norm(x, w, p + "self_attn_layer_norm")
            y = _norm(x, w, p + "final_layer_norm") if before else x
            y = _linear(y, w, p + "fc1")
            if c["activation_function"] == "relu":
                y = np.maximum(y, 0)
            else:
                y = y * 0.5 * (1 + _erf(y / np.sqrt(2)))
            x = x + _linear(y, w, p + "fc2")
            x = x if before else _norm(x, w, p + "final_layer_norm")
        if before and not c["_remove_final_layer_norm"]:
            x = _norm(x, w, "decoder.final_layer_norm")
        if "decoder.project_out.weight" in w:
            x = _linear(x, w, "decoder.project_out")
        x.flags.writeable = new.flags.writeable = False
        return x, new

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        head = self.weights.get("lm_head.weight")
        if head is None:
            head = self.weights["decoder.embed_tokens.weight"]
        return (hidden @ head.T).astype(np.float32)


_model = functools.cache(NumpyOPT)
"""What the transports of a checkpoint share."""


class NumpyTransport(Transport):
    """A transport whose server is ``NumpyOPT``; checks what it is sent.

    ``calls`` keeps (signature, version, shapes). ``versions`` maps each served version
    to a model. ``before`` may raise for a call, ``lie`` changes its outputs in place.
    With ``sessions={"slots": …, "positions": …}`` there are session signatures, and
    ``sessions`` holds what the server keeps; ``restart`` makes a new process of it.
    """

    def __init__(
        self,
        directory: Path = GOLDEN / "pre_ln",
        *,
        generate: tuple[int, ...] = (),
        before: Callable[[Call], None] | None = None,
        lie: Callable[[Call, dict[str, np.ndarray]], None] | None = None,
        tokenizer: str | None = None,
        **manifest: Any,
    ) -> None:
        self.model = _model(directory)
        names = ["prefill", "decode", "score", "embed", "describe"]
        names += ["tokenizer"] if tokenizer else []
        names += session_names(generate) if manifest.get("sessions") else []
        config = self.model.config
        self.manifest = Manifest(
            config=config,
            framework="tf",
            compiler="none",
            weights_dtype="float32",
            cache_dtype="float32",
            signatures=names + [generate_name(n) for n in generate],
            generate=list(generate),
            max_positions=config["max_position_embeddings"],
            vocab_size=config["vocab_size"],
            **manifest,
        )
        self.tokenizer = tokenizer
        self.versions = {1: self.model}
        self.before = before
        self.lie = lie
        self.calls: list[Call] = []
        self.timeouts: list[float | None] = []
        self.closed = False
        if self.manifest.sessions:
            self.restart()

    def restart(self) -> None:
        """Forget all sessions, as a server that starts anew."""
        self.sessions = NumpySessions(
            self.manifest, lambda *call: self._run(self.model, *call)
        )

    def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        self.calls.append(call)
        self.timeouts.append(timeout)
        if self.before:
            self.before(call)
        version = max(self.versions) if call.version is None else call.version
        if version not in self.versions:
            raise VersionGone(f"version {version} is gone", "NOT_FOUND")
        if call.signature not in self.manifest.signatures:
            raise IncompatibleModel(f"the model has no signature {call.signature!r}")
        inputs = {name: np.asarray(value) for name, value in call.inputs.items()}
        self._check(call.signature, inputs)
        outputs = self._run(self.versions[version], call.signature, inputs)
        if self.lie:
            self.lie(call, outputs)
        fetched = [name for name in call.outputs or outputs if name in outputs]
        return Reply(
            {name: outputs[name] for name in fetched},
            version=version,
            bytes_sent=sum(v.nbytes for v in inputs.values()),
            bytes_received=sum(outputs[name].nbytes for name in fetched),
        )

    def close(self) -> None:
        self.closed = True

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        """Shapes of an input over all calls that had it."""
        return [c.inputs[name].shape for c in self.calls if name in c.inputs]

    def _spec(self, name: str) -> SignatureSpec:
        manifest = self.manifest
        version = manifest.contract_version
        return signature(name, manifest.cache_layout, version=version)

    def _check(self, name: str, inputs: dict[str, np.ndarray]) -> None:
        spec = self._spec(name)
        assert set(inputs) == {tensor.name for tensor in spec.inputs}
        sizes: dict[str, int] = {}
        for tensor in spec.inputs:
            array = inputs[tensor.name]
            assert array.dtype == tensor.numpy_dtype(), (tensor, array.dtype)
            assert array.ndim == len(tensor.shape), (tensor, array.shape)
            for letter, size in zip(tensor.shape, array.shape, strict=True):
                if isinstance(letter, int):
                    assert size == letter, (tensor, array.shape)
                else:
                    assert sizes.setdefault(letter, size) == size, (tensor, sizes)
        manifest = self.manifest
        for letter in ("S", "C"):
            tokens = sizes.get("B", 0) * sizes.get(letter, 0)
            assert tokens <= (manifest.max_tokens_per_call or tokens)
        if name.startswith("session_") and "S" in sizes:
            rows = sizes["B"] * int(inputs["cache_length"].max())
            assert rows <= (manifest.max_tokens_per_call or rows)
        if manifest.batch_sizes and "S" in sizes:
            assert sizes["B"] in manifest.batch_sizes
        if manifest.prompt_buckets and "S" in sizes:
            largest = manifest.prompt_buckets[-1]
            whole = name in ("score", "embed") and sizes["S"] % largest == 0
            assert whole or sizes["S"] in (1, *manifest.prompt_buckets)
        if manifest.cache_buckets and "C" in sizes:
            assert sizes["C"] in manifest.cache_buckets

    def _run(self, model: NumpyOPT, name: str, inputs: dict[str, np.ndarray]):
        if name == "describe":
            return {"manifest": np.array([self.manifest.to_json().encode()], object)}
        if name == "tokenizer":
            return {"tokenizer": np.array([str(self.tokenizer).encode()], object)}
        if name.startswith("session_"):
            return self.sessions(name, inputs)
        ids, lengths = inputs["input_ids"], inputs["input_length"]
        count, size = ids.shape
        row_shape = self.manifest.cache_layout.row_shape
        steps = tokens_per_call(name)
        rows = size + (steps or 1) - 1
        out = {
            "new_cache": np.full((count, rows, *row_shape), 9e9, np.float32),
            "logits": np.zeros((count, self.manifest.vocab_size), np.float32),
            "tokens": np.full((count, steps or 0), -1, np.int32),
            "logprobs": np.full((count, steps or size), 0, np.float32),
            "top_ids": np.full((count, steps or size, TOP_LOGPROBS), -1, np.int32),
            "top_logprobs": np.zeros((count, steps or size, TOP_LOGPROBS), np.float32),
            "count": np.zeros(count, np.int32),
            "last_hidden_state": np.zeros(
                (count, size, self.manifest.config["word_embed_proj_dim"]), np.float32
            ),
            "pooled": np.zeros(
                (count, self.manifest.config["word_embed_proj_dim"]), np.float32
            ),
        }
        for b in range(count):
            cache = np.zeros((0, *row_shape), np.float32)
            if "cache" in inputs:
                cache = inputs["cache"][b, : inputs["cache_length"][b]]
            hidden, new = model.hidden(ids[b, : lengths[b]], cache)
            out["last_hidden_state"][b, : lengths[b]] = hidden
            out["pooled"][b] = hidden.mean(0)
            logits = model.logits(hidden)
            out["logits"][b] = logits[-1]
            if name == "score":
                for i, row in enumerate(logits[:-1], start=1):
                    out["logprobs"][b, i] = log_softmax(row)[ids[b, i]]
                    self._report(out, b, i, row, TOP_LOGPROBS)
            if steps:
                new = self._generate(model, inputs, b, cache, new, logits[-1], out)
            out["new_cache"][b, : len(new)] = new
        return {spec.name: out[spec.name] for spec in self._spec(name).outputs}

    def _report(self, out, b: int, i: int, logits: np.ndarray, count: int) -> None:
        ids = likeliest(logits, count)
        out["top_ids"][b, i, :count] = ids
        out["top_logprobs"][b, i, :count] = log_softmax(logits)[ids]

    def _generate(self, model, inputs, b, cache, new, logits, out):
        low, high = inputs["seed"][b].view(np.uint32)
        sampling = Sampling(
            seed=int(low) | int(high) << 32,
            **{
                name: inputs[name][b].item()
                for name in vars(Sampling())
                if name in inputs and name != "seed"
            },
        )
        history = inputs["history"][b].tolist()
        stops = [int(i) for i in inputs["stop_ids"][b] if i >= 0]
        bias, least, top = {}, 0, 0
        if self.manifest.contract_version >= 2:
            pairs = zip(inputs["bias_ids"][b], inputs["bias"][b], strict=True)
            bias = {int(i): float(x) for i, x in pairs if i >= 0}
            least, top = inputs["min_new_tokens"][b], inputs["top_logprobs"][b]
        most = min(int(inputs["max_new_tokens"][b]), out["tokens"].shape[1])
        for step in range(most):
            token, logprob = choose(
                logits,
                sampling,
                position=len(cache) + len(new),
                history=history,
                bias=bias,
                forbidden=stops if step < least else (),
            )
            history.append(token)
            out["tokens"][b, step], out["logprobs"][b, step] = token, logprob
            out["count"][b] = step + 1
            self._report(out, b, step, logits, int(top))
            if token in stops or step + 1 == most:
                break
            hidden, row = model.hidden(np.array([token]), np.concatenate([cache, new]))
            new = np.concatenate([new, row])
            logits = model.logits(hidden)[-1]
        return new


class AsyncNumpy(AsyncTransport):
    """``NumpyTransport`` for asyncio; a call takes ``delay`` seconds."""

    def __init__(self, delay: float = 0.0, **options) -> None:
        self.inner = NumpyTransport(**options)
        self.delay = delay
        self.under_way = self.most = 0
        self.cancelled = 0

    async def call(self, call: Call, *, timeout: float | None = None) -> Reply:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(self.delay)
            return self.inner.call(call, timeout=timeout)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1

    async def close(self) -> None:
        self.inner.close()


MIXED = [[2, *range(4, 4 + n)] for n in (1, 17, 5, 30, 2, 9, 22)]
"""Prompts of unequal lengths."""


def one_by_one(**options) -> list[list[int]]:
    """Each prompt alone, step by step, without any bucket."""
    with Client(transport=NumpyTransport(), max_rows=1) as client:
        return [client.generate([p], **options)[0].tokens for p in MIXED]
