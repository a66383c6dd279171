"""OPT in TensorFlow and JAX, and its files.

Names are imported when they are first used: importing this package needs neither
framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import OPTConfig
    from .config_checks import ConfigError
    from .flax.classes import FlaxOPTForCausalLM, FlaxOPTModel
    from .tf.classes import TFOPTForCausalLM, TFOPTModel
    from .weights import WeightsError

_WHERE = {
    "ConfigError": ".config_checks",
    "FlaxOPTForCausalLM": ".flax.classes",
    "FlaxOPTModel": ".flax.classes",
    "OPTConfig": ".config",
    "TFOPTForCausalLM": ".tf.classes",
    "TFOPTModel": ".tf.classes",
    "WeightsError": ".weights",
}

__all__ = [
    "ConfigError",
    "FlaxOPTForCausalLM",
    "FlaxOPTModel",
    "OPTConfig",
    "TFOPTForCausalLM",
    "TFOPTModel",
    "WeightsError",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
