"""A pytest plugin that runs Transformers' own OPT tests on our classes.

    make test-upstream TESTS=FOLDER

``FOLDER`` is a checkout of the transformers repository at a release of the 4.4x series;
nothing of it is part of this repository. The names that its tests import are ours then,
and Keras is Keras 3, which our classes are made with; the configurations stay theirs,
which its tests give to their PyTorch classes too. ``OPTSERVE_UPSTREAM=theirs`` runs
the same tests on Transformers' own classes, to see which of them pass there.
"""

from __future__ import annotations

import os

import pytest

TF_NAMES = ("TFOPTModel", "TFOPTForCausalLM")
FLAX_NAMES = ("FlaxOPTModel", "FlaxOPTForCausalLM")


def pytest_configure(config: pytest.Config) -> None:
    """Swap the names before any test module is imported."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    config.addinivalue_line("markers", "is_pt_tf_cross_test: upstream's")
    if os.environ.get("OPTSERVE_UPSTREAM") != "theirs":
        swap()


def swap() -> None:
    """Our classes under Transformers' names."""
    import keras
    import optserve.models as ours
    import transformers
    from optserve.models import outputs
    from transformers import generation, modeling_tf_utils, utils
    from transformers.models.opt import modeling_flax_opt, modeling_tf_opt
    from transformers.utils import generic

    modeling_tf_utils.keras = keras
    generic.ModelOutput = utils.ModelOutput = either(
        generic.ModelOutput, outputs.ModelOutput
    )
    for name in dir(outputs):
        if name.endswith("DecoderOnlyOutput"):
            setattr(generation, name, getattr(outputs, name))
    for name in (*TF_NAMES, *FLAX_NAMES):
        for module in (transformers, modeling_tf_opt, modeling_flax_opt):
            setattr(module, name, getattr(ours, name))
    mappings = {
        "TF_MODEL_MAPPING": "TFOPTModel",
        "TF_MODEL_FOR_CAUSAL_LM_MAPPING": "TFOPTForCausalLM",
        "FLAX_MODEL_MAPPING": "FlaxOPTModel",
        "FLAX_MODEL_FOR_CAUSAL_LM_MAPPING": "FlaxOPTForCausalLM",
    }
    for mapping, name in mappings.items():
        getattr(transformers, mapping).register(
            transformers.OPTConfig, getattr(ours, name), exist_ok=True
        )


def either(theirs: type, ours: type) -> type:
    """A class that has the instances of both."""

    class Kind(type(theirs)):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, (theirs, ours))

    return Kind("ModelOutput", (theirs,), {})
