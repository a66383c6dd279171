"""How a call reaches a model: gRPC, in this process, or LiteRT."""
