"""For which decode steps of a model there may be drafts. Main thread of every rank."""

from server.engine.rows_apart import Ways

DRAFTS = ("of any row", "of a row that runs alone")


def may_draft(speculate: str, ways: Ways, cuttable: bool) -> str:
    """One of DRAFTS, or why there are none. cuttable: the model's caches can be cut, on all
    ranks."""
    if speculate == "off":
        return "off"
    if not (cuttable and ways.apart):
        return "none: this model's caches cannot be cut"
    return DRAFTS[not (ways.rows_apart or ways.bear_widths)]
