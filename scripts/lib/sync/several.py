"""Several models to one host, one after the other; room for all of them is looked at first.

Called by sync_model.py, on a thread for each host. One that fails stops no other.
"""

from collections.abc import Mapping, Sequence

from scripts.lib.hosts.on_hosts import LOCAL_HOST
from scripts.lib.sync.model_copy import SPARE_BYTES, Job, missing_bytes, serve, tell_node
from scripts.lib.sync.parallel import Failure, Voice, size_text

Outcomes = dict[str, tuple[bool, str]]  # by model: whether it is there now, and what was done


def serve_each(jobs: Mapping[str, Job], host: str, voice: Voice) -> Outcomes:
    """jobs: by the model's name. Raises Failure where the host has no room for all."""
    if host != LOCAL_HOST:
        check_space(list(jobs.values()), host, voice)
    outcomes: Outcomes = {}
    for number, (name, job) in enumerate(jobs.items(), 1):
        if host != LOCAL_HOST:
            voice.say(f"model {number} of {len(jobs)}: {name}")
        try:
            outcomes[name] = (True, serve(job, host, voice))
        except Failure as failure:
            outcomes[name] = (False, str(failure))
    return outcomes


def check_space(jobs: Sequence[Job], host: str, voice: Voice) -> None:
    """Raises Failure where what is missing of all is more than a disk of the host has left."""
    missing: dict[int, int] = {}
    free: dict[int, int] = {}
    for number, job in enumerate(jobs, 1):
        there = tell_node(job, host, "look")
        if there["shared"]:
            return
        disk = there["disk"]
        missing.setdefault(disk, 0)
        missing[disk] += missing_bytes(job.items, there["final"], there["partial"])
        free[disk] = there["free"]
        voice.progress(lambda number=number: f"looked for {number} of {len(jobs)} models")
    for disk, needed in missing.items():
        # One whose df tells nothing is told of with the first model.
        if needed and 0 <= free[disk] < needed + SPARE_BYTES:
            raise Failure(
                f"{size_text(free[disk])} free, and what is missing of {len(jobs)} models needs "
                f"another {size_text(needed + SPARE_BYTES)}: free some space there"
            )
    if total := sum(missing.values()):
        voice.say(f"{size_text(total)} of {len(jobs)} models are missing")


def by_host_and_model(
    outcomes: Mapping[str, tuple[bool, str]], each: Mapping[str, Outcomes]
) -> Outcomes:
    """A line for each model on each host; one for a host that had none."""
    lines: Outcomes = {}
    for host, outcome in outcomes.items():
        if not each.get(host):
            lines[host] = outcome
        for name, told in each.get(host, {}).items():
            lines[f"{host} {name}"] = told
    return lines
