"""Reading streams: the peak is the final arrays and about one tensor more.

The reader runs in a process of its own, which reports its peak resident size, mapped
files included (``VmHWM``).
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from optserve.models.checkpoints import FORMATS
from optserve.models.config import OPTConfig
from optserve.models.examples.random_checkpoint import write_random_checkpoint
from optserve.models.weights import weight_shapes

READER = """
import json, sys
import numpy as np
import ml_dtypes
from optserve.models.checkpoints import open_weights

def status(field):
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return 1024 * int(line.split()[1])

directory, format, dtype = sys.argv[1:]
weights = open_weights(directory, format=format)
before = status("VmRSS")
final = {name: np.empty(weights.shape(name), dtype) for name in weights}
for name, array in weights.items():
    final[name][...] = array
size = sum(array.nbytes for array in final.values())
print(json.dumps({"final": size, "before": before, "peak": status("VmHWM")}))
"""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak is read from /proc"
)


def measure(directory: Path, dtype: str, format: str = "safetensors") -> dict[str, int]:
    command = [sys.executable, "-c", READER, str(directory), format, dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def config() -> OPTConfig:
    """Proportions of the real ones: the largest tensor is a tenth of the whole."""
    return OPTConfig(
        vocab_size=6_000,
        hidden_size=256,
        ffn_dim=1024,
        num_hidden_layers=16,
        num_attention_heads=8,
        max_position_embeddings=128,
    )


@pytest.mark.parametrize("format", [name for name in FORMATS if name != "bin"])
def test_the_peak_is_the_final_size_and_little_more(format, config, tmp_path: Path):
    write_random_checkpoint(tmp_path, config, format=format, max_shard_size="15MB")
    full = 4 * sum(map(math.prod, weight_shapes(config).values()))
    for dtype, expected in (("float32", full), ("bfloat16", full / 2)):
        actual = measure(tmp_path, dtype, format)
        assert actual["final"] == expected
        assert actual["peak"] - actual["before"] <= 1.15 * expected


@pytest.mark.full_size
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_1_3b_in_full(stored, tmp_path: Path):
    """With everything counted: 1.15 × the final size, or half of that in bfloat16."""
    config = OPTConfig.preset("1.3b")
    write_random_checkpoint(tmp_path, config, dtype=stored)
    full = 4 * sum(map(math.prod, weight_shapes(config).values()))
    for dtype in ("float32", "bfloat16"):
        actual = measure(tmp_path, dtype)
        print(stored, "as", dtype, actual, actual["peak"] / actual["final"])
        assert actual["peak"] <= 1.15 * (full if dtype == "float32" else full / 2)
