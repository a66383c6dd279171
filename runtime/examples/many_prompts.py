"""Many prompts at a time under asyncio; each is done with as soon as it is there.

python many_prompts.py 127.0.0.1:8500 prompts.txt
"""

import asyncio
import sys
from pathlib import Path

from optserve.runtime import AsyncClient, OptserveError


async def main(target: str, file: str) -> None:
    """One line of the file, one line of output, in the order of their end."""
    prompts = Path(file).read_text(encoding="utf-8").splitlines()

    async def answer(client: AsyncClient, number: int, prompt: str) -> None:
        try:
            (result,) = await client.generate([prompt], max_new_tokens=32, timeout=120)
        except OptserveError as error:
            print(f"{number}: failed: {error}")
        else:
            print(f"{number}: {result.text!r}")

    async with AsyncClient(target, max_active=64) as client:
        await asyncio.gather(
            *(answer(client, number, prompt) for number, prompt in enumerate(prompts))
        )


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
