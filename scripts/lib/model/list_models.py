"""The models that MODEL_DIR, MODELS and MODELS_DIR name, as rank 0 will have them: a line each.

usage: list_models.py MODEL_DIR MODEL_ID MODELS MODELS_DIR

Each may be empty. Prints name and folder, a tab between, the first to be loaded first. Exit codes:
0 done, 2 they are wrong.
"""

import os
import sys
from pathlib import Path

from server.protocol.model_list import ServedModel, list_models
from server.protocol.setting import SettingError, parse
from server.protocol.settings_table import BY_NAME


def main(arguments: list[str]) -> int:
    """Exit code."""
    if len(arguments) != 4:
        print(__doc__, file=sys.stderr)
        return 2
    model_dir, model_id, models, models_dir = arguments
    try:
        first = None
        if model_dir:
            folder = Path(os.path.realpath(os.path.expanduser(model_dir)))
            first = ServedModel(model_id or folder.name, folder)
        named = parse(BY_NAME["MODELS"], models)
        for one in list_models(first, named, parse(BY_NAME["MODELS_DIR"], models_dir)):
            print(one.name, one.folder, sep="\t")
    except SettingError as error:
        print(f"list_models.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
