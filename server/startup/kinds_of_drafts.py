"""For which decode steps of a model there may be drafts. Main thread of every rank."""

from typing import Any

from server.engine.prefix_store import NO_REUSE, REUSE_CUT, reuse_kind
from server.engine.rows_apart import Ways
from server.wire.link import Link

DRAFTS = ("of any row", "of a row that runs alone")


def may_draft(speculate: str, ways: Ways, reuse: int) -> str:
    """One of DRAFTS, or why there are none. reuse: what the model's caches allow on all ranks, as
    prefix_store.py has it. What can be kept of a text can be put back for it, too."""
    if speculate == "off":
        return "off"
    if reuse == NO_REUSE:
        return "none: this model's caches cannot be put back"
    together = reuse == REUSE_CUT and ways.shelves and ways.bear_widths
    return DRAFTS[not (ways.rows_apart or together)]


def agree_on_drafts(speculate: str, model: Any, ways: Ways, link: Link) -> str:
    """may_draft() for this rank's part of a model. Every rank calls it, and has the same."""
    told = link.gather_bytes(bytes([reuse_kind(model, ways)]))
    return may_draft(speculate, ways, min(told)[0])
