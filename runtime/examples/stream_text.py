"""Text as it is generated, from one server or several.

python stream_text.py 127.0.0.1:8500[,HOST:PORT …] "Good morrow"
"""

import sys

from optserve.runtime import Client, OptserveError, Sampling


def main(targets: str, prompt: str) -> None:
    """Print the continuation chunk by chunk, then what it cost."""
    sampling = Sampling(temperature=0.8, top_p=0.95, seed=7)
    with Client(targets.split(","), wait=60) as client:
        stream = client.stream(prompt, max_new_tokens=64, sampling=sampling)
        for chunk in stream:
            print(chunk.text, end="", flush=True)
        result = stream.generation
    print(f"\n[{result.finish_reason}, {result.tokens_per_second:.0f} tokens/s]")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OptserveError as error:
        sys.exit(f"{error}")
