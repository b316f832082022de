"""For which decode steps of a model there may be drafts. Main thread of every rank."""

from typing import Any

from server.engine.prefix_store import REUSE_CUT, reuse_kind
from server.engine.rows_apart import Ways
from server.wire.link import Link

DRAFTS = ("of any row", "of a row that runs alone")


def may_draft(speculate: str, ways: Ways, cuttable: bool) -> str:
    """One of DRAFTS, or why there are none. cuttable: the model's caches can be cut, on all
    ranks."""
    if speculate == "off":
        return "off"
    if not (cuttable and ways.apart):
        return "none: this model's caches cannot be cut"
    return DRAFTS[not (ways.rows_apart or ways.bear_widths)]


def agree_on_drafts(speculate: str, model: Any, ways: Ways, link: Link) -> str:
    """may_draft() for this rank's part of a model. Every rank calls it, and has the same."""
    told = link.gather_bytes(bytes([reuse_kind(model, ways)]))
    return may_draft(speculate, ways, min(told)[0] == REUSE_CUT)
