"""What a step finds when it looks. Looks ask the hosts anew each time and change nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field

from scripts.lib.setup.site import Site
from scripts.lib.sync.parallel import serve_all

HOLDS, NEEDED, NOT_HERE, STUCK = "holds", "needed", "not needed here", "cannot go on"


@dataclass(frozen=True)
class Look:
    """STUCK: only people can mend it. words: why, a line each. hosts: those for which it is needed,
    where not for all, and what its commands must know about each."""

    verdict: str
    words: str = ""
    hosts: dict[str, tuple[str, ...]] = field(default_factory=dict)


def always(words: str) -> Callable[[Site], Look]:
    """Of a step whose commands only look: they are run each time."""
    return lambda site: Look(NEEDED, words)


def failures(site: Site, look: Callable[[str], str]) -> dict[str, str]:
    """Why this raises Failure, by host; all hosts at once."""
    outcomes = serve_all(site.hosts, look)
    return {host: text for host, (fine, text) in outcomes.items() if not fine}


def lines(by_host: dict[str, str]) -> str:
    return "\n".join(f"{host}: {text}" for host, text in by_host.items())
