"""Which of several models could not be served, before launch: a look at each, as check_model.py's.

usage: check_models.py RANKS [--parallel KIND] [--trust-remote-code] [--json]
                       MODEL_DIR MODEL_ID MODELS MODELS_DIR PINNED

The last five are the settings, each may be empty. Without --json it is for the run script, which
has looked at the first by itself: of the others it tells on stderr which cannot be served, and why.
With it, for the doctor: one JSON object with `models`: name, folder, reasons against each, and, for
those that can be served, files as the handshake compares them, weights by rank, and what loading
takes beside these at its peak; `others`: folders below MODELS_DIR that are no models, and why; or
`error`. Exit codes: 0 done, 2 the settings are wrong, 3 mlx-lm is not installed.
"""

import json
import sys
from pathlib import Path
from typing import Any

from scripts.lib.model.check_model import weights_of
from scripts.lib.model.list_models import SETTINGS, read_list
from scripts.lib.model.look import look
from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.shared import one_of, whole
from server.protocol.fingerprint import fingerprint_files
from server.protocol.model_list import ServedModel, look_below
from server.protocol.setting import SettingError, parse
from server.protocol.settings_table import BY_NAME
from server.startup.arrangement import KINDS, arrangements, choose
from server.startup.weights_index import total

SHOWN = 10  # folders that are no models


def examine(model: ServedModel, ranks: int, parallel: str, trust: bool) -> dict[str, Any]:
    """As the module's docstring has it. Raises RuntimeError where mlx-lm is not installed."""
    looked = look(model.folder, trust)
    reasons, weights = list(looked.reasons), weights_of(model.folder)
    found = {"name": model.name, "folder": str(model.folder), "reasons": reasons}
    shares = None
    if looked.architecture is not None:
        ways = arrangements(looked.config, weights, ranks, (), looked.architecture, parallel)
        if (how := choose(ways)) is None:
            reasons += [f"{one.kind}: {reason}" for one in ways for reason in one.reasons]
        else:
            shares = how.shares
    if reasons:
        return found
    try:
        files = fingerprint_files(model.folder)
    except OSError as error:
        reasons.append(f"{error.filename} cannot be read: {error.strerror}")
        return found
    shares = list(shares or (-(-total(weights) // ranks),) * ranks)
    # What is cut for a rank is read whole.
    peak = max((weight.nbytes for weight in weights.values()), default=0)
    return found | {"files": files, "weights": shares, "peak": peak}


def main(arguments: list[str] | None = None) -> int:
    """Exit code."""
    parser = Parser("check_models.py", __doc__)
    parser.add_argument("ranks", type=whole(1, 10**6), metavar="RANKS")
    parser.add_argument("--parallel", type=one_of(*KINDS), default="auto")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("settings", nargs=len(SETTINGS), metavar="SETTING")
    options = parser.parse_args(arguments)
    told: dict[str, Any] = {"models": [], "others": []}
    code, ranks = 0, options.ranks
    try:
        models = read_list(options.settings)
        for model in models if options.json else models[1:]:
            said = examine(model, ranks, options.parallel, options.trust_remote_code)
            told["models"].append(said)
        top = parse(BY_NAME["MODELS_DIR"], options.settings[3])
        if top:
            told["others"] = [[str(path), why] for path, why in look_below(Path(top)).others]
    except SettingError as error:
        told["error"], code = str(error), 2
    except RuntimeError as error:
        told["error"], code = str(error), 3
    if options.json:
        print(json.dumps(told))
        return code
    if code:
        print(f"check_models: {told['error']}", file=sys.stderr)
    for one in told["models"]:
        if one["reasons"]:
            why = "; ".join(one["reasons"])
            print(f"warning: {one['name']} cannot be served: {why}", file=sys.stderr)
    for folder, why in told["others"][:SHOWN]:
        print(f"not served: {folder}: {why}", file=sys.stderr)
    if len(told["others"]) > SHOWN:
        print(f"and {len(told['others']) - SHOWN} more folders that are no models", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
