"""From prompt to text: the client. Imports neither TensorFlow nor JAX."""

from .async_client import AsyncClient, AsyncStream
from .client import Client, Stream
from .conversation import AsyncConversation, Conversation
from .core import unpadded
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
from .options import Beams, Constraints, Options
from .results import Counters, Generation, Piece, Score
from .sampling import Sampling

__all__ = [
    "AsyncClient",
    "AsyncConversation",
    "AsyncStream",
    "Beams",
    "Cancelled",
    "Client",
    "Constraints",
    "Conversation",
    "Counters",
    "DeadlineExceeded",
    "Generation",
    "IncompatibleModel",
    "InvalidRequest",
    "MalformedReply",
    "Options",
    "OptserveError",
    "Piece",
    "PromptTooLong",
    "Sampling",
    "Score",
    "ServerError",
    "Stream",
    "Unavailable",
    "VersionGone",
    "unpadded",
]
