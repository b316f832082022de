"""The model folder: there, whole, the same everywhere, and to be split over these ranks. Pure."""

import re
import shlex
from collections.abc import Iterator

from scripts.lib.doctor.cluster import Cluster
from scripts.lib.doctor.facts import HostFacts
from scripts.lib.doctor.findings import (
    FAIL,
    PASS,
    SKIP,
    WARN,
    Finding,
    Fix,
    gigabytes,
    listed,
    most_common,
)

SHOWN = 3  # differing files that are named
# Reasons of check_model.py that are about the number of ranks, not about the files: each begins
# with the kind of split that it is about.
_SPLIT = re.compile(r"(generic )?(tensor|pipeline): ")
# Those that no other copy of the files would mend.
_BEYOND_COPIES = re.compile(
    r"DRAFT_MODEL_DIR=|mlx-lm's |model_type is |config\.json wants |the tokenizer needs"
)


def _split_reasons(facts: HostFacts) -> list[str]:
    reasons = facts.split["reasons"] if facts.split else []
    return [reason for reason in reasons if _SPLIT.match(reason)]


def _file_reasons(facts: HostFacts) -> list[str]:
    reasons = facts.split["reasons"] if facts.split else []
    return [reason for reason in reasons if not _SPLIT.match(reason)]


def model(cluster: Cluster) -> Iterator[Finding]:
    """Every host has the whole model, with the same content."""
    folder = cluster.plan.model_dir
    if folder is None:
        words = "see models" if cluster.plan.several else "MODEL_DIR is not set"
        if cluster.plan.local and not cluster.plan.several:
            words += ": the first start makes the demo model"
        for facts in cluster.reached:
            yield Finding("model", facts.host, SKIP, words)
        return
    readable = [facts for facts in cluster.reached if "model" not in facts.unread]
    whole = [facts for facts in readable if facts.model and facts.model.exists]
    names = list(dict.fromkeys(name for facts in whole for name in facts.model.files))
    usual = {name: most_common(facts.model.files.get(name) for facts in whole) for name in names}
    for facts in cluster.reached:
        if "model" in facts.unread:
            yield Finding("model", facts.host, SKIP, "see folders")
            continue
        if facts.model is None:
            reason = facts.why("model") or "it could not be looked at without Python"
            yield Finding("model", facts.host, SKIP, reason)
            continue
        if not facts.model.exists:
            yield Finding(
                "model",
                facts.host,
                FAIL,
                f"there is no {folder}",
                "the rank ends while loading, with a message about that folder",
                _sync(cluster, facts.host),
            )
            continue
        odd = [name for name in names if facts.model.files.get(name) != usual[name]]
        problems = [_difference(facts, name, usual[name]) for name in odd[:SHOWN]]
        problems += [f"{len(odd) - SHOWN} more differ"] * (len(odd) > SHOWN)
        problems += [
            reason for reason in _file_reasons(facts) if not any(name in reason for name in odd)
        ]
        if problems:
            yield Finding(
                "model",
                facts.host,
                FAIL,
                "; ".join(problems),
                'an error while loading, exit code 78 with "the ranks differ: model file ...", or '
                "garbage in the answers",
                _files_fix(cluster, facts.host, problems),
            )
        else:
            yield Finding("model", facts.host, PASS, gigabytes(facts.model.weights))


def _files_fix(cluster: Cluster, host: str, problems: list[str]) -> Fix:
    if all(_BEYOND_COPIES.match(problem) for problem in problems):
        return Fix("do as it says; or take another model, or an mlx-lm that has what it needs")
    return _sync(cluster, host)


def _sync(cluster: Cluster, host: str) -> Fix:
    folder = cluster.plan.model_dir
    if cluster.plan.local:
        return Fix(f"set MODEL_DIR to the folder of a whole MLX model; this one is {folder}")
    if host == cluster.plan.rank0:
        return Fix(
            "rank 0 is the one that the others get theirs from: download it there again, with "
            "the name of its repository, scripts/sync_model.sh OWNER/NAME"
        )
    return Fix(
        "copies it from rank 0, as far as it differs, and checks every byte",
        command=shlex.join(["scripts/sync_model.sh", str(folder), host]),
        here=True,
    )


def _difference(facts: HostFacts, name: str, usual: str | None) -> str:
    here = facts.model.files.get(name)
    if here is None:
        return f"{name} is missing"
    if usual is None:
        return f"{name} is there alone: the others have no such file"
    sizes = [text.partition(" bytes")[0] for text in (here, usual)]
    if all(size.isdigit() for size in sizes) and sizes[0] != sizes[1]:
        return f"{name} has {sizes[0]} bytes, the others {sizes[1]}"
    return f"{name} has another content than the others'"


def heads(cluster: Cluster) -> Iterator[Finding]:
    """There is a way to share the model among so many ranks."""
    plan = cluster.plan
    told = [f for f in cluster.reached if f.split is not None and "model" not in f.unread]
    if not told:
        words = "see model" if plan.model_dir is None else "see python and model"
        yield Finding("heads", None, SKIP, words)
        return
    reasons = _split_reasons(told[0])  # the same config everywhere, or see model
    if not reasons:
        how = told[0].split.get("arrangement") or plan.parallel
        yield Finding("heads", None, PASS, f"{how} over {len(plan.ranks)} rank(s)")
        return
    counts = told[0].split.get("rank_counts") or []
    words = f"start with {listed(counts)} rank(s)" if counts else "take another model"
    if plan.parallel != "auto":
        words += ", or PARALLEL=auto"
    yield Finding(
        "heads",
        None,
        FAIL,
        "; ".join(reasons),
        "the start is refused; with another server, a crash in a reshape",
        Fix(words),
    )


def formats(cluster: Cluster) -> Iterator[Finding]:
    """What the model writes as a call is one for clients, and it hears of their tools."""
    told = [f for f in cluster.reached if f.full and "model" not in f.unread]
    known = next((facts.full["formats"] for facts in told if facts.full.get("formats")), None)
    if known is None:
        unread = [reason for facts in told for reason in _unread(facts.full)]
        if unread:
            fix = Fix("take a conversion whose tokenizer transformers can read: a tokenizer.json")
            symptom = 'exit code 78 with "the tokenizer ... cannot be loaded"'
            yield Finding("formats", None, FAIL, unread[0], symptom, fix)
            return
        words = "see model" if cluster.plan.model_dir is None else "see python and model"
        yield Finding("formats", None, SKIP, words)
        return
    quirks = known.get("template") or []
    words = f"tool calls: {known['calls']}, by its {known['calls_by']}; thinking: "
    words += "; ".join([known["thinking"], *quirks])
    if known["calls"] == "none":
        words = "; ".join(["no format of tool calls is known for this model", *quirks])
        symptom = "what it writes as a call reaches clients as text, and agents stop"
        fix = Fix("take the chat template of the model's makers; scripts/read_answer.py shows more")
        yield Finding("formats", None, WARN, words, symptom, fix)
    elif any("tools are not shown" in quirk for quirk in quirks):
        symptom = "the model calls no tool, as it never hears of any"
        fix = Fix("take a chat template that shows tools into the model's folder")
        yield Finding("formats", None, WARN, words, symptom, fix)
    else:
        yield Finding("formats", None, PASS, words)


def _unread(full: dict) -> list[str]:
    return [reason for reason in full.get("reasons", ()) if "cannot be loaded" in reason]
