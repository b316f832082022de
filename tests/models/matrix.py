"""Every architecture of the installed mlx-lm, served small: a line each, and at the end how many.

    nice .venv/bin/python -m tests.models.matrix [--bits 4] [NAME...]

Rows of one process; exit code 1 where one is not served as mlx-lm serves it alone.
"""

import argparse
import logging
import sys

from tests.models.architectures import architectures
from tests.models.served import check_all, serve
from tests.models.sizes import VARIANTS


def main() -> int:
    parser = argparse.ArgumentParser(prog="matrix")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--bits", type=int)
    options = parser.parse_args()
    logging.disable()
    right = wrong = 0
    for name in options.names or (*architectures(), *VARIANTS):
        try:
            shard = serve(name, options.bits)
        except Exception as error:  # what a start would say
            print(f"{name:40} refused: {type(error).__name__}: {error}", flush=True)
            continue
        try:
            check_all(shard)
        except Exception as error:
            wrong += 1
            print(
                f"{name:40} WRONG ({shard.last.ways}): {type(error).__name__}: {error}", flush=True
            )
            continue
        right += 1
        print(f"{name:40} {shard.last.ways}", flush=True)
    print(f"{right} right, {wrong} wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
