"""Export options: JSON there and back, defaults put in, contradictions refused."""

from __future__ import annotations

import pytest
from optserve.export.errors import ExportError
from optserve.export.options import ExportOptions

CHOSEN = ExportOptions(
    framework="jax",
    weights="int8",
    cache="bfloat16",
    generate=[4, 16],
    prompt_buckets=(1, 8),
    batch_sizes=[1, 8],
    portable=True,
)


@pytest.mark.parametrize("options", [ExportOptions(), CHOSEN])
def test_json_there_and_back(options):
    assert ExportOptions.from_json(options.to_json()) == options
    assert ExportOptions.from_dict(options.to_dict()) == options
    assert "\n" not in options.to_json()


def test_defaults_follow_from_the_framework():
    assert ExportOptions().compiler == "none"
    assert ExportOptions(framework="jax").compiler == "xla"
    assert ExportOptions(framework="jax", target="tflite").compiler == "none"


@pytest.mark.parametrize("framework", ["tf", "jax"])
def test_int8_is_multiplied_as_such_unless_it_should_run_anywhere(framework):
    options = {"weights": "int8", "framework": framework}
    assert ExportOptions(**options, activations="int8").multiplies_int8
    assert not ExportOptions(**options, portable=True).multiplies_int8
    assert not ExportOptions(**options, target="tflite").multiplies_int8


def test_they_are_values():
    assert hash(CHOSEN) == hash(ExportOptions.from_json(CHOSEN.to_json()))
    with pytest.raises(AttributeError):
        CHOSEN.weights = "float32"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"target": "onnx"},
            "--target should be one of savedmodel, tflite, got 'onnx'",
        ),
        ({"compiler": "llvm"}, "--compiler should be one of none, xla, got 'llvm'"),
        ({"weights": "int2"}, "--weights should be one of float32"),
        ({"weights": "int4"}, "int4 of a SavedModel is for --framework jax"),
        (
            {"weights": "int4", "compiler": "xla"},
            "int4 of a SavedModel is for --framework jax",
        ),
        ({"target": "tflite", "weights": "bfloat16"}, "float32, float16, int8, int4"),
        ({"target": "tflite", "compiler": "xla"}, "takes neither --compiler xla"),
        ({"target": "tflite", "cache": "int8"}, "nor --cache"),
        ({"framework": "jax", "compiler": "none"}, "runs only with XLA"),
        ({"generate": [8, 1]}, "--generate should be ascending numbers from 1 on"),
        ({"generate": [0]}, "--generate should be ascending"),
        (
            {"batch_sizes": [8, 8], "compiler": "xla"},
            "--batch-sizes should be ascending",
        ),
        ({"activations": "int4"}, "--activations should be one of auto, int8, int16"),
        ({"activations": "int8"}, "--activations is for --weights int8"),
        ({"weights": "int8", "portable": True, "activations": "int8"}, "leave it out"),
        ({"calibrate": "text.txt"}, "--calibrate is for --weights int8"),
        (
            {"weights": "int8", "activations": "int16", "calibrate": "text.txt"},
            "--calibrate is for int8 activations",
        ),
        ({"tuned_for": "amd"}, "--tuned-for should be one of any, this-processor"),
        ({"tuned_for": "this-processor"}, "--tuned-for is for a SavedModel with"),
        (
            {
                "tuned_for": "this-processor",
                "weights": "int8",
                "framework": "jax",
                "portable": True,
            },
            "with --framework jax not for --portable",
        ),
        (
            {"tuned_for": "this-processor", "weights": "int8", "target": "tflite"},
            "--tuned-for is for a SavedModel with",
        ),
        ({"batch_sizes": [1]}, "--batch-sizes is for a compiled export"),
        ({"batch_sizes": [1], "target": "tflite"}, "--batch-sizes is for a compiled"),
        ({"prompt_buckets": [1], "compiler": "xla"}, "is for --framework jax and"),
        ({"sessions": -1}, "--sessions should be 0 or more"),
        ({"sessions": 2, "session_slots": 0}, "--session-slots 1 or more"),
        ({"session_slots": 64}, "--session-slots is for --sessions"),
        ({"sessions": 2, "target": "tflite"}, "has no sessions"),
        ({"cache_size": 64}, "--cache-size is for --target tflite"),
        ({"generate": [4], "target": "tflite"}, "has no generate signature"),
    ],
)
def test_contradictions_are_refused(options, said):
    with pytest.raises(ExportError, match=said):
        ExportOptions(**options)


def test_an_unknown_option_is_named():
    with pytest.raises(ExportError, match="no export option is called colour"):
        ExportOptions.from_dict({"colour": "red"})
