"""The cabling drawn: as text for a terminal, and for Graphviz.

Both show every cable that was found, used or not. Nothing is decided here.
"""

import json
from collections.abc import Mapping, Sequence

from scripts.lib.cabling.cabling import Cable, matrix
from scripts.lib.cabling.plan import Plan
from scripts.lib.cabling.survey import Facts


def draw_text(facts: Mapping[str, Facts], plan: Plan) -> str:
    """Each host with its ports, then who reaches whom over which interface.

    studio-1  rank 0, 192.0.2.11
      Thunderbolt 2 (en3)  ======== 80 Gb/s ========  studio-2 Thunderbolt 2 (en3)
      Thunderbolt 3 (en4)  Studio Display

              studio-1  studio-2
    studio-1     .        en3
    studio-2    en3        .
    """
    order = plan.order or tuple(facts)
    parts = [_draw_host(facts[host], plan) for host in order]
    if plan.links:
        parts.append(_draw_grid(order, plan.used or [*plan.links]))
    if plan.order and plan.topology == "ring" and len(order) > 2:
        parts.append("ring: " + " -- ".join([*order, order[0]]))
    return "\n\n".join(parts) + "\n"


def _draw_host(fact: Facts, plan: Plan) -> str:
    about = [fact.lan_address or "no address on an ordinary network"]
    if plan.order:
        about.insert(0, f"rank {plan.order.index(fact.host)}")
    lines = [f"{fact.host}  {', '.join(about)}"]
    plugged = [port for port in fact.ports if port.plugged]
    width = max((len(port.label) for port in plugged), default=0)
    far = {}
    for link in plan.links:
        for end, other in ((link.a, link.b), (link.b, link.a)):
            far[end.host, end.port.domain] = (link, other)
    # A cable that only the far end sees is drawn at both.
    for port in fact.ports:
        if (fact.host, port.domain) in far:
            link, other = far[fact.host, port.domain]
            lines.append(f"  {port.label:{width}}  {_line(link)}  {other}")
        elif port.peer:
            name = f"{port.peer.name}, which was not named"
            lines.append(f"  {port.label:{width}}  {name}")
        elif port.attached:
            lines.append(f"  {port.label:{width}}  {', '.join(port.attached)}")
    if len(lines) == 1:
        lines.append("  nothing is plugged into its Thunderbolt ports")
    return "\n".join(lines)


def _line(link: Cable) -> str:
    """A cable: double when it is fast enough for RDMA, dotted when one end does not see it."""
    stroke = "=" if link.fast_enough else "-"
    if not link.both_ways:
        stroke = "."
    speed = f" {link.speed_gbps:g} Gb/s " if link.speed_gbps else stroke * 9
    return f"{stroke * 8}{speed}{stroke * 8}"


def _draw_grid(order: Sequence[str], links: Sequence[Cable]) -> str:
    cells = [
        [
            "." if a == b else ",".join(name.removeprefix("rdma_") for name in devices or ()) or "-"
            for b, devices in zip(order, row, strict=True)
        ]
        for a, row in zip(order, matrix(order, links), strict=True)
    ]
    widths = [max(len(row[i]) for row in [order, *cells]) for i in range(len(order))]
    first = max(map(len, order))
    rows = [["", *order], *([host, *row] for host, row in zip(order, cells, strict=True))]
    lines = (
        f"{row[0]:{first}}  "
        + "  ".join(f"{cell:^{width}}" for cell, width in zip(row[1:], widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def draw_dot(facts: Mapping[str, Facts], plan: Plan) -> str:
    """The same for Graphviz. Red: too slow for RDMA; grey: not used; dashed: doubtful."""
    names = {host: f"n{number}" for number, host in enumerate(facts)}
    lines = ["graph cabling {", "  node [shape=box];"]
    for host, fact in facts.items():
        rank = f"\nrank {plan.order.index(host)}" if plan.order else ""
        lines.append(f"  {names[host]} [label={json.dumps(host + rank + _address_line(fact))}];")
    used = plan.used
    for link in plan.links:
        looks = {
            "taillabel": str(link.a.interface or "?"),
            "headlabel": str(link.b.interface or "?"),
            "label": f"{link.speed_gbps:g} Gb/s" if link.speed_gbps else "",
        }
        if not link.fast_enough:
            looks["color"] = "red"
        elif plan.order and link not in used:
            looks["color"] = "grey"
        if not link.both_ways or link.via:
            looks["style"] = "dashed"
        text = ", ".join(f"{key}={json.dumps(value)}" for key, value in looks.items() if value)
        lines.append(f"  {names[link.a.host]} -- {names[link.b.host]} [{text}];")
    return "\n".join([*lines, "}", ""])


def _address_line(fact: Facts) -> str:
    return f"\n{fact.lan_address}" if fact.lan_address else ""
