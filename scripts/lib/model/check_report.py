"""What check_model.sh found, as text for people. Pure; standard library alone."""

from collections.abc import Mapping, Sequence
from typing import Any

UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
HEADS = ("ranks", "how", "weights", "a token", "a request", "context")


def as_text(report: Mapping[str, Any]) -> str:
    """Lines, with a line break at the end."""
    lines = [_title(report)]
    lines += [f"  {name:<14} {text}" for name, text in _facts(report)]
    if report["ranks"]:
        lines += ["", "  most that a rank holds, and the context of a single request:", ""]
        lines += _table([HEADS, *map(_row, report["ranks"])])
    return "\n".join([*lines, ""])


def _title(report: Mapping[str, Any]) -> str:
    kind, name = report["model_type"], report["architecture"]
    if name is None:
        return f"{report['model']}: model_type {kind!r}, which cannot be served"
    return f"{report['model']}: {kind}" + ("" if name == kind else f", mlx-lm's {name}")


def _facts(report: Mapping[str, Any]):
    yield "weights", size(report["weights_bytes"]) if report["weights_bytes"] else "not known"
    if report["context"]:
        yield "context", f"{report['context']} tokens"
    formats, code = report["formats"], report["tokenizer_code"]
    if formats is not None:
        by = f", known by its {formats['calls_by']}" if formats["calls_by"] else ""
        none = "no format is known: what it writes as a call reaches clients as text"
        yield "tool calls", none if formats["calls"] == "none" else formats["calls"] + by
        yield "thinking", formats["thinking"]
        for quirk in formats["template"]:
            yield "chat template", quirk
    if code is not None:
        needed = "has to be run: see TRUST_REMOTE_CODE" if code["needed"] else "is not needed"
        yield "tokenizer", f"{code['file']} of the model {needed}"
    for host in report["hosts"]:
        usable = host["usable_bytes"]
        yield (
            host["name"],
            (f"{size(usable)} for ranks" if usable else f"memory not known: {host['why']}"),
        )


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["how"] is None:
        return (str(row["ranks"]), "-", "", "", "", "; ".join(row["reasons"]))
    kv = row["kv"]
    numbers = [
        size(max(row["weights_bytes"], default=0)),
        size(max(one["token_bytes"] for one in kv)) if kv else "?",
        size(max(one["request_bytes"] for one in kv)) if kv else "?",
    ]
    return (str(row["ranks"]), row["how"], *numbers, _context(row))


def _context(row: Mapping[str, Any]) -> str:
    if row["reasons"]:
        return "does not fit: " + "; ".join(row["reasons"])
    if row["context"] is not None:
        return str(row["context"])
    if row["kv_unknown"]:
        return f"not known: {row['kv_unknown']}"
    return "too few hosts" if not row["usable_bytes"] else "memory not known"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[n]) for row in rows) for n in range(len(HEADS) - 1)]
    return [
        "  "
        + "  ".join(
            [*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[-1]]
        )
        for row in rows
    ]


def size(nbytes: float) -> str:
    """Bytes in a unit that leaves few digits."""
    for unit, name in UNITS:
        if nbytes >= unit:
            return f"{nbytes / unit:.1f} {name}"
    return f"{int(nbytes)} B"
