"""Write emoji as pairs of picture and name: pictures that other people drew, in four sets.

    python examples/emoji/make_pairs.py emoji
    python examples/emoji/make_pairs.py emoji-de --language de --sets google

`google.jsonl` has all pairs of a set, `train-google.jsonl` and `test-google.jsonl` those of the
concepts to train on and to hold out. docs/real_pictures.md says what to do with them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from maskery.core.errors import MaskeryError
from maskery.runs.pairs.emoji import available_sets, write_emoji


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", help="default: all there are")
    parser.add_argument("--language", default="en", help="a code of CLDR, such as de")
    asked = parser.parse_args()
    try:
        for name in asked.sets or available_sets():
            print(f"{name}: {write_emoji(asked.folder, name, asked.language):,} pictures")
    except MaskeryError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
