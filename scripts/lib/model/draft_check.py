"""What stands against a draft model, as far as its files tell: as rank 0 would refuse it.

Called before launch by check_model.py. Imports no mlx; of a tokenizer that has no tokenizer.json,
or another kind of it, rank 0 alone can tell.
"""

from pathlib import Path

from scripts.lib.model.look import look
from server.startup.vocabulary import difference, read_vocabulary


def reasons_against(draft: Path, folder: Path, trust: bool = False) -> list[str]:
    """A sentence each. folder: of the model that it drafts for; trust: as look() has it."""
    if not draft.is_dir():
        return [
            f"DRAFT_MODEL_DIR={str(draft)!r}: must be the folder of an MLX model; no such folder"
        ]
    reasons = look(draft, trust).reasons
    try:
        own, wanted = read_vocabulary(draft), read_vocabulary(folder)
    except (OSError, ValueError) as error:
        return [*_named(draft, reasons), f"DRAFT_MODEL_DIR={str(draft)!r}: {error}"]
    if own and wanted and (differs := difference(own, wanted)):
        reasons.append(f"must have the tokens of the model that it drafts for: {differs}")
    return _named(draft, reasons)


def _named(draft: Path, reasons: list[str]) -> list[str]:
    return [f"DRAFT_MODEL_DIR={str(draft)!r}: {reason}" for reason in reasons]
