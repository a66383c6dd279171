"""From a prompt to tokens: the decode loop and what it needs. No gRPC in here."""
