"""Files that say how something is: of a checkpoint, of a server."""

from __future__ import annotations

import numpy as np
import pytest
from optserve.models import ConfigError, OPTConfig
from optserve.runtime.contract import Manifest
from optserve.runtime.errors import OptserveError

from tests.runtime.numpy_model import GOLDEN, NumpyTransport

from .mutations import changed_bytes, changed_json, pick

pytestmark = pytest.mark.fuzz


def test_checkpoint_configurations(fuzz, tmp_path):
    text = (GOLDEN / "pre_ln" / "config.json").read_text()

    def target(rng: np.random.Generator) -> str:
        (tmp_path / "config.json").write_bytes(changed_json(rng, text))
        try:
            config = OPTConfig.from_pretrained(tmp_path)
        except ConfigError as error:
            assert "\n" not in str(error)
            return "refused"
        assert config.hidden_size % config.num_attention_heads == 0
        return "read"

    fuzz(target, share=5)


def test_manifests(fuzz):
    text = NumpyTransport().manifest.to_json()

    def target(rng: np.random.Generator) -> str:
        try:
            manifest = Manifest.from_json(changed_json(rng, text))
        except ValueError as error:
            assert str(error).isprintable(), ascii(str(error))
            return "refused"
        assert Manifest.from_json(manifest.to_json()) == manifest
        return "read"

    fuzz(target, share=5)


FILES = {
    "models": 'model_config_list { config { name: "opt" base_path: "/m" '
    'model_platform: "tensorflow" version_labels { key: "stable" value: 1 } '
    "model_version_policy { specific { versions: 1 versions: 2 } } } }",
    "batching": "max_batch_size { value: 8 } batch_timeout_micros { value: 100 } "
    "allowed_batch_sizes: 1 allowed_batch_sizes: 8 pad_variable_length_inputs: true",
    "tls": 'server_key: "a" server_cert: "b" custom_ca: "c" client_verify: true',
}


@pytest.mark.parametrize("kind", FILES)
def test_server_files(fuzz, tmp_path, kind):
    config_files = pytest.importorskip("optserve.runtime.server.config_files")
    from optserve.runtime.server.serving_error import ServingError

    read = getattr(config_files, f"read_{kind}_file")
    path = tmp_path / f"{kind}.config"

    def target(rng: np.random.Generator) -> str:
        data = changed_bytes(rng, FILES[kind].encode())
        if rng.random() < 0.3:
            number = str(pick(rng, (-1, 0, 2**31, 2**63, 10**30))).encode()
            data = FILES[kind].encode().replace(b"8", number).replace(b"2", number)
        path.write_bytes(data)
        try:
            read(str(path))
        except (OptserveError, ServingError, ValueError, OSError) as error:
            assert "\n" not in str(error)
            return "refused"
        return "read"

    fuzz(target)
