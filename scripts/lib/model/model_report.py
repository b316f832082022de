"""All that is known of a model before it is started, as one JSON-able object. See check_model.sh.

Needs the ranks' environment. Loads the tokenizer, and no weights; code of the model's runs only
where TRUST_REMOTE_CODE says so.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.lib.model.draft_check import reasons_against
from scripts.lib.model.hosts_memory import Machines
from scripts.lib.model.hub_files import fetch_small
from scripts.lib.model.kv_estimate import Unknown, rank_rows
from scripts.lib.model.look import Looked, look
from scripts.lib.model.size_up import Sized, Subject, size_up
from scripts.lib.settings.kept_settings import Found
from server.engine.kv_memory import RowBytes
from server.protocol.settings import bits_of
from server.protocol.tokenizer_code import wanted_code
from server.startup.arrangement import Arrangement
from server.startup.loading import Unloadable, context_length
from server.startup.tokenizer import load
from server.startup.weights_index import Weight, read_weights, total
from server.text.markup import known_of
from server.text.template_quirks import quirks_of


def examine(
    name: str,
    revision: str | None,
    scratch: Path,
    machines: Machines,
    settings: Mapping[str, Found],
    counts: Sequence[int] = (),
) -> dict[str, Any]:
    """name: a folder, or a repo, whose small files go into scratch. counts: of ranks, else 1 to 8.
    Raises NotGiven where the hub does not give the repo."""
    is_folder = Path(name).is_dir()
    folder = Path(name) if is_folder else scratch
    trust = settings["TRUST_REMOTE_CODE"].value is True
    weights = _weights(folder) if is_folder else fetch_small(name, revision, folder)
    looked = look(folder, trust, is_folder, machines.metal)
    writes, unreadable = writing(folder, looked, trust)
    # Of a repo's files the scratch folder is no place that anybody knows.
    reasons = [reason.replace(f"{scratch}/", "") for reason in (*looked.reasons, *unreadable)]
    context, told = _context(looked, settings["CONTEXT_MAX"].value)
    code = wanted_code(folder)
    draft = settings["DRAFT_MODEL_DIR"].value
    if draft:
        reasons += reasons_against(Path(draft), folder, trust)
    return {
        "model": name,
        "model_type": looked.config.get("model_type"),
        "architecture": looked.architecture.name if looked.architecture else None,
        "weights_bytes": total(weights),
        "largest_weight_bytes": max((one.nbytes for one in weights.values()), default=0),
        "context": context,
        "tokenizer_code": None
        if code is None
        else {"file": code.file, "needed": looked.code is not None or trust},
        "formats": writes,
        "hosts": [
            {"name": host, "usable_bytes": usable, "why": why}
            for host, usable, why in zip(
                machines.names, machines.usable, machines.why, strict=True
            )
        ],
        "ranks": [] if looked.architecture is None else [
            _as_json(sized)
            for sized in size_up(
                Subject(
                    looked.config,
                    weights,
                    looked.architecture,
                    context,
                    settings["PARALLEL"].text or "auto",
                    _kv_budget(settings),
                    bits_of(settings["KV_BITS"].value),
                    settings["KV_BITS_FROM"].value,
                    total(_weights(Path(draft))) if draft else 0,
                ),
                machines,
                counts,
            )
        ],
        "problems": [*reasons, *told],
    }  # fmt: skip


def writing(
    folder: Path, looked: Looked, trust: bool
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """How the model writes calls and thoughts, and what its template leaves out; or why there is no
    telling."""
    if looked.code is not None or not looked.config:
        return None, ()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        tokenizer = load(folder, looked.config, trust)
    except Exception as error:  # transformers raises whatever it likes
        why = " ".join(f"{type(error).__name__}: {error}".split())
        return None, (f"the tokenizer cannot be loaded: {why}"[:500],)
    return asdict(known_of(tokenizer)) | {"template": list(quirks_of(tokenizer))}, ()


def kv_of(
    config: Mapping[str, Any], name: str, ranks: int, how: Arrangement, bits: int = 0
) -> list[dict]:
    """What a request and each token of it take on each rank; nothing where that is not known.
    bits: of keys and values; 0: all."""
    try:
        return _kv(rank_rows(dict(config), name, ranks, how, bits))
    except Unknown:
        return []


def _kv(rows: Sequence[RowBytes]) -> list[dict]:
    # whole_token_bytes: of a request that is too short for fewer bits.
    return [
        {"request_bytes": row.fixed, "token_bytes": row.token}
        | ({"whole_token_bytes": row.whole} if row.whole else {})
        for row in rows
    ]


def judged(report: Mapping[str, Any], ranks: int | None) -> list[str]:
    """Why it would not run. ranks: how many there are; None: any number will do."""
    found = list(report["problems"])
    rows = report["ranks"]
    if not rows:
        return found
    wanted = [row for row in rows if ranks in (None, row["ranks"])]
    if any(not row["reasons"] and row["usable_bytes"] for row in wanted):
        return found
    for row in wanted:
        if not row["reasons"]:
            return [*found, f"on {ranks} ranks: too few hosts: there are {len(report['hosts'])}"]
    if ranks is not None:
        found += [f"on {ranks} ranks: {reason}" for row in wanted for reason in row["reasons"]]
        good = [str(row["ranks"]) for row in rows if not row["reasons"]]
        return found + ([f"rank counts that work: {', '.join(good)}"] if good else [])
    return [*found, "it runs on no number of ranks: " + "; ".join(rows[-1]["reasons"])]


def _as_json(sized: Sized) -> dict[str, Any]:
    return {
        "ranks": sized.ranks,
        "how": sized.how or None,
        "weights_bytes": list(sized.weights),
        "kv": _kv(sized.rows),
        "kv_unknown": sized.kv or None,
        "usable_bytes": list(sized.memories),
        "context": sized.context,
        "reasons": list(sized.reasons),
    }


def _weights(folder: Path) -> dict[str, Weight]:
    try:
        return read_weights(folder)
    except (OSError, ValueError):
        return {}  # which look() tells


def _context(looked: Looked, most: int | None) -> tuple[int | None, tuple[str, ...]]:
    """Tokens, and what stands against it, as the server would say."""
    try:
        own = context_length(looked.config) if looked.architecture else None
    except Unloadable as error:
        return most, () if most else (str(error),)
    return min(filter(None, (own, most)), default=None), ()


def _kv_budget(settings: Mapping[str, Found]) -> int | None:
    given = settings["KV_BUDGET_GB"].value
    return int(given * 1e9) if given else None
