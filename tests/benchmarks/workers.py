"""Our engines of the benchmark, each in a process of its own.

    python workers.py MODE TARGET THREADS

``MODE`` is ``grpc`` (TARGET: an address, cache explicit in every call), ``inprocess``
(TARGET: an export's folder) or ``litert`` (TARGET: a ``.tflite`` file).
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from optserve.runtime import AsyncClient, Client
from optserve.runtime.memory import keep_freed_memory
from protocol import Prompts, Runner, serve, take_over_stdout


def runner(client: Client, target: str, options: dict[str, Any]) -> Runner:
    """What the benchmark asks for, done by the clients."""

    def generate(prompts: Prompts, tokens: int) -> dict[str, Any]:
        results = client.generate(prompts, max_new_tokens=tokens, stop_token_ids=[])
        assert all(len(result.tokens) == tokens for result in results)
        return {
            "bytes_sent": sum(result.bytes_sent for result in results),
            "bytes_received": sum(result.bytes_received for result in results),
        }

    async def serve_callers(prompts: Prompts, tokens: int) -> list[list[float]]:
        async with AsyncClient(target, **options) as caller:

            async def times(prompt: list[int]) -> list[float]:
                arrivals: list[float] = []
                async for chunk in caller.stream(
                    prompt, max_new_tokens=tokens, stop_token_ids=[]
                ):
                    arrivals += [time.perf_counter()] * len(chunk.tokens)
                assert len(arrivals) == tokens
                return arrivals

            return await asyncio.gather(*map(times, prompts))

    about = client.describe()
    return Runner(
        f"{about.framework}, {about.compiler}, {about.weights_dtype}",
        generate,
        lambda prompts, tokens: asyncio.run(serve_callers(prompts, tokens)),
    )


def main() -> None:
    """Answer the benchmark's commands on standard input until it closes."""
    mode, target, threads = sys.argv[1:]
    answers = take_over_stdout()
    keep_freed_memory()
    options: dict[str, Any] = {} if mode == "grpc" else {"threads": int(threads)}
    with Client(target, **options) as client:
        serve(runner(client, target, options), answers)


if __name__ == "__main__":
    main()
