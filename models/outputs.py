"""What the models return: fields by attribute, by key, by index, and as a tuple."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from inspect import get_annotations
from typing import Any


class ModelOutput(OrderedDict):
    """An ordered dict whose fields are attributes too; absent fields are None there.

    ``output["logits"]``, ``output.logits``, ``output[0]``, ``output[:2]`` and
    ``output.to_tuple()`` all work; a field that is None is in neither dict nor tuple.
    It is a dict so that TensorFlow, Keras and JAX see the tensors inside.
    """

    _fields: tuple[str, ...] = ()

    def __init_subclass__(cls) -> None:
        cls._fields = tuple(get_annotations(cls)) or cls._fields

    def __init__(self, pairs: Iterable = (), /, **fields: Any) -> None:
        super().__init__()
        given = dict(pairs) | fields
        if unknown := given.keys() - set(self._fields):
            raise TypeError(
                f"{type(self).__name__} has no field {sorted(unknown)[0]!r}"
            )
        for name in self._fields:
            if given.get(name) is not None:
                self[name] = given[name]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        return self.to_tuple()[key]

    def __getattr__(self, name: str) -> Any:
        if name in self._fields:
            return self.get(name)
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._fields:
            super().__setattr__(name, value)
        elif value is None:
            self.pop(name, None)
        else:
            self[name] = value

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are there, in their order."""
        return tuple(self[name] for name in self._fields if name in self)


class TFBaseModelOutputWithPast(ModelOutput):
    """``past_key_values``: L tensors (2, B, H, T, D); ``hidden_states``: L+1 of
    (B, S, E); ``attentions``: L of (B, H, S, T)."""

    last_hidden_state: Any
    past_key_values: Any
    hidden_states: Any
    attentions: Any


class TFCausalLMOutputWithPast(ModelOutput):
    """``loss`` (n,), one number for each unmasked label; ``logits`` (B, S, V); the rest
    as in :class:`TFBaseModelOutputWithPast`."""

    loss: Any
    logits: Any
    past_key_values: Any
    hidden_states: Any
    attentions: Any


class TFGreedySearchDecoderOnlyOutput(ModelOutput):
    """``sequences`` (rows, length); for each new token, in eager calls that ask for it:
    ``scores`` (rows, V), what it was chosen from, and of what was fed (the prompt, then
    one token) ``attentions``: L of (rows, H, fed, length so far), and
    ``hidden_states``: L+1 of (rows, fed, E)."""

    sequences: Any
    scores: Any
    attentions: Any
    hidden_states: Any


class TFSampleDecoderOnlyOutput(TFGreedySearchDecoderOnlyOutput):
    """As :class:`TFGreedySearchDecoderOnlyOutput`."""


class TFContrastiveSearchDecoderOnlyOutput(TFGreedySearchDecoderOnlyOutput):
    """As :class:`TFGreedySearchDecoderOnlyOutput`."""


class TFBeamSearchDecoderOnlyOutput(ModelOutput):
    """Besides, ``sequences_scores`` (rows,), and ``beam_indices`` (rows, new tokens):
    the row of ``scores`` that each token came from, −1 after the end. The rows of
    ``scores``, ``attentions`` and ``hidden_states`` are the beams as they ran."""

    sequences: Any
    sequences_scores: Any
    scores: Any
    beam_indices: Any
    attentions: Any
    hidden_states: Any


class TFBeamSampleDecoderOnlyOutput(TFBeamSearchDecoderOnlyOutput):
    """As :class:`TFBeamSearchDecoderOnlyOutput`."""


class FlaxGreedySearchOutput(ModelOutput):
    """``sequences`` (rows, max_length), the padding token after the end."""

    sequences: Any


class FlaxSampleOutput(FlaxGreedySearchOutput):
    """As :class:`FlaxGreedySearchOutput`."""


class FlaxBeamSearchOutput(ModelOutput):
    """Besides, the ``scores`` (rows,) of the sequences."""

    sequences: Any
    scores: Any


class FlaxBaseModelOutput(ModelOutput):
    """``past_key_values`` (the updated cache) is there when a cache came in."""

    last_hidden_state: Any
    hidden_states: Any
    attentions: Any
    past_key_values: Any


class FlaxCausalLMOutput(ModelOutput):
    """As :class:`FlaxBaseModelOutput`, with ``logits`` (B, S, V)."""

    logits: Any
    hidden_states: Any
    attentions: Any
    past_key_values: Any
