"""A checkpoint to a verified version in a build script, and a first text from it.

python export_and_try.py models/tiny_shakespeare out int8
"""

import json
import sys

from optserve.export.errors import ExportError
from optserve.export.options import ExportOptions
from optserve.export.pipeline import PhaseClock, export_checkpoint
from optserve.runtime import Client


def main(checkpoint: str, out: str, weights: str) -> None:
    """Print what the export took, how far it is from the checkpoint, and some text."""
    exported = export_checkpoint(
        checkpoint,
        out,
        ExportOptions(weights=weights),
        clock=PhaseClock(print_to=sys.stderr),
    )
    print(json.dumps({"path": str(exported.path), "phases": exported.phases}))
    with Client(exported.path) as client:
        print(client.generate(["ROMEO:"], max_new_tokens=20)[0].text)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ExportError as error:
        sys.exit(f"{error}")
