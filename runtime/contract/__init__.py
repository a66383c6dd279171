"""The graph contract: what a client and an exported model agree on. Needs numpy only.

    signatures      every signature's names, shapes and dtypes, in one table
    cache_layout    sizes of a cache row, and how its numbers travel
    manifest        what an export says of itself
    constants       versions, dtypes and limits

Exporters build signatures from it, clients check what they send and get against it.
"""

from .cache_layout import CacheLayout
from .constants import (
    CACHE_DTYPES,
    CONTRACT_VERSION,
    FOUND_AT_LOAD,
    INT32_LIMIT,
    MANIFEST_LIMIT,
    MESSAGE_LIMIT,
    ROWS_LIMIT,
    SPOKEN_VERSIONS,
    TOP_LOGPROBS,
    WEIGHT_DTYPES,
)
from .manifest import Manifest
from .signatures import (
    EXTRA_OUTPUTS,
    Dim,
    SignatureSpec,
    TensorSpec,
    generate_name,
    session_generate_name,
    session_names,
    session_tokens_per_call,
    signature,
    tokens_per_call,
)

__all__ = [
    "CACHE_DTYPES",
    "CONTRACT_VERSION",
    "EXTRA_OUTPUTS",
    "FOUND_AT_LOAD",
    "INT32_LIMIT",
    "MANIFEST_LIMIT",
    "MESSAGE_LIMIT",
    "ROWS_LIMIT",
    "SPOKEN_VERSIONS",
    "TOP_LOGPROBS",
    "WEIGHT_DTYPES",
    "CacheLayout",
    "Dim",
    "Manifest",
    "SignatureSpec",
    "TensorSpec",
    "generate_name",
    "session_generate_name",
    "session_names",
    "session_tokens_per_call",
    "signature",
    "tokens_per_call",
]
