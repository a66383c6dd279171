"""From prompt to text: the client. Imports neither TensorFlow nor JAX."""

from .async_client import AsyncClient
from .async_stream import AsyncStream
from .client import Client, Stream
from .conversation import AsyncConversation, Conversation
from .decoding.prefix_cache import PrefixCache
from .decoding.prompts import unpadded
from .errors import (
    Cancelled,
    DeadlineExceeded,
    IncompatibleModel,
    InvalidRequest,
    MalformedReply,
    OptserveError,
    PromptTooLong,
    ServerError,
    Unavailable,
    VersionGone,
)
from .options import Beams, Constraints, GenerationOptions
from .results import Chunk, Counters, Generation, Score
from .sampling import Sampling
from .transports.connection import Ejection, Keepalive, Limits, Retry, Tls

__version__ = "0.2.0.dev0"

__all__ = [
    "AsyncClient",
    "AsyncConversation",
    "AsyncStream",
    "Beams",
    "Cancelled",
    "Chunk",
    "Client",
    "Constraints",
    "Conversation",
    "Counters",
    "DeadlineExceeded",
    "Ejection",
    "Generation",
    "GenerationOptions",
    "IncompatibleModel",
    "InvalidRequest",
    "Keepalive",
    "Limits",
    "MalformedReply",
    "OptserveError",
    "PrefixCache",
    "PromptTooLong",
    "Retry",
    "Sampling",
    "Score",
    "ServerError",
    "Stream",
    "Tls",
    "Unavailable",
    "VersionGone",
    "unpadded",
]
