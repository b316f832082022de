"""Every model of MODELS and MODELS_DIR: the same everywhere, to be served, and fitting. Pure.

What each host says of its list is check_models.py's. A model that cannot be loaded is refused when
it is asked for, and the others are served: so that is a warning, as what is one model's alone.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
from scripts.lib.doctor.judge_memory import limit
from server.protocol.model_list import NOTHING

SHOWN = 3  # of each kind
REFUSED = 'requests for it get a 503 with code "not_loaded" and the reason'

Model = Mapping[str, Any]  # as check_models.py tells it


def models(cluster: Cluster) -> Iterator[Finding]:
    """For each host what is most wrong there. What counts is what rank 0 lists, as the run script
    hands that on to all ranks."""
    told = [facts for facts in cluster.reached if facts.models and "error" not in facts.models]
    lists = {facts.host: tuple(_by_place(facts)) for facts in told}
    served = lists.get(cluster.plan.rank0, most_common(lists.values()) or ())
    for facts in cluster.reached:
        here = _by_place(facts)
        lacks = [name for name, folder in served if (name, folder) not in here]
        if facts.models is None:
            yield Finding("models", facts.host, SKIP, facts.why("check_models") or "see python")
        elif "error" in facts.models or lacks:
            words = facts.models.get("error") or f"it lacks {_some(lacks)}"
            symptom = "the rank ends at once, with exit code 78 and what MODELS must be"
            yield Finding("models", facts.host, FAIL, words, symptom, _sync(cluster, facts.host))
        elif differ := list(_differences(facts, told, served)):
            words = _some(differ, "; ")
            yield Finding("models", facts.host, FAIL, words, REFUSED, _sync(cluster, facts.host))
        else:
            yield _judge_each(cluster, facts, served)


Place = tuple[str, str]  # name and folder


def _by_place(facts: HostFacts) -> dict[Place, Model]:
    every = (facts.models or {}).get("models", ())
    return {(one["name"], one["folder"]): one for one in every}


def _differences(
    facts: HostFacts, told: list[HostFacts], served: tuple[Place, ...]
) -> Iterator[str]:
    """Models whose files are not what most hosts have."""
    here = _by_place(facts)
    for place in served:
        every = [_by_place(other).get(place) for other in told]
        # One that a host cannot read is as different as it can be; one that none can is not.
        usual = most_common(_content(model) for model in every if model)
        mine = _content(here[place])
        if mine == usual:
            continue
        names = sorted({name for name, _ in set(usual or ()) ^ set(mine or ())})
        yield f"{place[0]}: {_some(names)} is not what the others have"


def _content(model: Model) -> tuple[tuple[str, str], ...] | None:
    return tuple(sorted(model["files"].items())) if "files" in model else None


def _judge_each(cluster: Cluster, facts: HostFacts, served: tuple[Place, ...]) -> Finding:
    """Of a host that has what it should."""
    here = _by_place(facts)
    every = [here[place] for place in served]
    refused = [f"{one['name']}: {'; '.join(one['reasons'])}" for one in every if one["reasons"]]
    verdict, close = _room(cluster, facts, [one for one in every if not one["reasons"]])
    if refused or close:
        words = _some([*refused, *close], "; ")
        fix = Fix(
            "leave it out, or take another; where memory is short: fewer PINNED, a smaller model "
            "or quantisation, more ranks, or a higher MODELS_GB"
        )
        return Finding("models", facts.host, verdict, words, REFUSED, fix)
    others = [f"{folder}: {why}" for folder, why in facts.models["others"]]
    if half := [f"{folder}: {why}" for folder, why in facts.models["others"] if why != NOTHING]:
        fix = Fix("run scripts/sync_model.sh for it again, or move it out of MODELS_DIR")
        symptom = 'it is not in the list: requests for it get a 404 with "model_not_found"'
        return Finding("models", facts.host, WARN, _some(half, "; "), symptom, fix)
    words = f"{len(every)} models, of which each fits beside those that are pinned"
    if alone := [name for name, folder in here if (name, folder) not in served]:
        words += f"; not served, as rank 0 has it not: {_some(alone)}"
    if others:
        words += f"; no models: {_some(others, '; ')}"
    return Finding("models", facts.host, PASS, words)


def _room(cluster: Cluster, facts: HostFacts, usable: list[Model]) -> tuple[str, list[str]]:
    """What does not fit on this host: weights of what is pinned and of one more, and what loading
    it takes at its peak."""
    ranks = cluster.plan.ranks_on(facts.host)
    most = limit(facts)
    if cluster.plan.models_gb:
        most = min(most or float("inf"), cluster.plan.models_gb * 1e9 * len(ranks))
    if not most:
        return WARN, []

    def weights(model: Model) -> int:
        return sum(model["weights"][rank] for rank in ranks)

    def peak(model: Model) -> int:
        return model["peak"] * len(ranks)

    pinned = [one for one in usable if one["name"] in cluster.plan.pinned]
    held = sum(map(weights, pinned))
    names = listed(one["name"] for one in pinned)
    if held + max(map(peak, pinned), default=0) > most:
        return FAIL, [f"{names} (PINNED) take {gigabytes(held)} of {gigabytes(most)}"]
    beside = f" beside {names} (PINNED, {gigabytes(held)})" if pinned else ""
    return WARN, [
        f"{one['name']} takes {gigabytes(weights(one))}{beside}, and there are {gigabytes(most)}"
        for one in usable
        if one not in pinned and weights(one) + peak(one) + held > most
    ]


def _sync(cluster: Cluster, host: str) -> Fix:
    if cluster.plan.local or host == cluster.plan.rank0:
        return Fix(
            "set MODELS and MODELS_DIR to folders that are there; rank 0 is the one that the "
            "others get theirs from"
        )
    return Fix(
        "copies all of them from rank 0, as far as they differ, and checks every byte",
        command=shlex.join(["scripts/sync_model.sh", "--all", host]),
        here=True,
    )


def _some(words: Sequence[str], between: str = ", ") -> str:
    more = f"{between}{len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return between.join(words[:SHOWN]) + more
