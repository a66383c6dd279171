"""An HTTP server that speaks OpenAI's protocol, in front of TensorFlow Serving.

``optserve gateway --target HOST:PORT`` runs it. It stands on ``AsyncClient`` and knows
nothing of caches or graphs; what it has of its own is the protocol (``bodies``,
``completions``, ``chat``, ``embeddings``, ``tokenization``), the queue (``admission``),
the keys (``keys``) and the figures (``metrics``).
"""

from .app import create_app
from .settings import GatewaySettings

__all__ = ["GatewaySettings", "create_app"]
