"""Which of several models fit beside each other, reckoned as the server does when one is loaded.

Pure; by what model_report.py has found of each. Of a set that fits every part fits, too.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from server.engine.kv_memory import SPARE_SHARE
from server.scheduler.kv_pool import UNKNOWN_CONTEXT, KvPool, Need, RankPart, RankRoom


def judge_together(
    reports: Sequence[Mapping[str, Any]], ranks: int, kv_budget: int | None = None
) -> dict[str, Any]:
    """ranks: of a row that each report has. fit: the largest sets, of names; against: why not all
    of them do. Models that would not run by themselves are left out."""
    rows = {}
    for report in reports:
        row = next((row for row in report["ranks"] if row["ranks"] == ranks), None)
        if row and row["how"] and not row["reasons"] and row["usable_bytes"]:
            rows[report["model"]] = (report, row)
    if any(None in row["usable_bytes"] for _, row in rows.values()):
        return {"ranks": ranks, "fit": [], "against": "the hosts' memory is not known"}
    fit: list[set[str]] = []
    for count in range(len(rows), 0, -1):
        for names in combinations(rows, count):
            larger = any(set(names) < one for one in fit)
            if not larger and not _misfit([rows[name] for name in names], kv_budget):
                fit.append(set(names))
    against = _misfit(list(rows.values()), kv_budget) if rows else ""
    sets = [[name for name in rows if name in one] for one in fit]
    return {"ranks": ranks, "fit": sets, "against": against}


def as_text(told: Mapping[str, Any]) -> str:
    """Lines, with a line break at the end."""
    lines = ["", f"beside each other, on {told['ranks']} rank(s):"]
    if told["fit"] and not told["against"]:
        lines.append(f"  all {len(told['fit'][0])} of them fit")
    else:
        lines += [f"  fit together:  {', '.join(names)}" for names in told["fit"]]
        lines += [f"  not all:       {told['against']}"] * bool(told["against"])
    return "\n".join([*lines, ""])


def _misfit(models: Sequence[tuple[Mapping, Mapping]], kv_budget: int | None) -> str:
    """Why they do not fit beside each other, or nothing. The one with the largest array is the
    last: it is read whole."""
    *before, last = sorted(models, key=lambda model: model[0]["largest_weight_bytes"])
    needs = [_need(*model) for model in (*before, last)]
    first, memories = needs[0], last[1]["usable_bytes"]
    rooms = []
    for memory, part in zip(memories, first.parts, strict=True):
        spare = memory - part.weights
        caches = int(spare * SPARE_SHARE) if kv_budget is None else kv_budget
        spent = SPARE_SHARE if kv_budget is None else 0.0
        rooms.append(RankRoom(caches, max(spare, caches), spent))
    pool = KvPool(rooms, first)
    for number, need in enumerate(needs[:-1]):
        pool.add(number, need)
    return pool.misfit(needs[-1], last[0]["largest_weight_bytes"])


def _need(report: Mapping[str, Any], row: Mapping[str, Any]) -> Need:
    kv = row["kv"] or [{}] * len(row["weights_bytes"])  # where it is not known
    parts = (
        RankPart(
            weights,
            one.get("request_bytes", 0),
            one.get("token_bytes", 0),
            one.get("whole_token_bytes", 0),
        )
        for weights, one in zip(row["weights_bytes"], kv, strict=True)
    )
    return Need(tuple(parts), report["context"] or UNKNOWN_CONTEXT)
