"""Which of several texts the model finds likeliest, and how sentences embed.

python likelier_text.py 127.0.0.1:8500 "To be, or not to be" "To bee, ore knot two bee"
"""

import sys

import numpy as np
from optserve.runtime import Client


def main(target: str, *texts: str) -> None:
    """Perplexity of each text, the likeliest first, and its likeness to the first."""
    with Client(target) as client:
        scores = client.score(texts)
        means = [states.mean(axis=0) for states in client.embed(texts)]
    directions = [mean / np.linalg.norm(mean) for mean in means]
    for index in np.argsort([score.perplexity for score in scores]):
        likeness = float(directions[index] @ directions[0])
        print(f"{scores[index].perplexity:9.2f} {likeness:6.3f} {texts[index]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
