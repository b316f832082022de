"""How a rank joins the group: MLX's init, tried again while the others are late, and a first proof.

Called once on the main thread of every rank, under a limit of its own (JOIN_TIMEOUT). MLX gives the
others some 15 to 30 s to come, then throws; it has opened no device by then, so it is asked again
until the time is up. And it asks nobody who connects: over ring the first caller of a rank's
port is taken for its neighbour, over JACCL for a rank. A scanner, or a rank of a server that starts
at the same moment, can so take a peer's place, and nothing says so until the first exchange. That
is what `meet` is for, after the joining: a dead link has no end, and has a limit of its own.
"""

import time
from collections.abc import Callable, Mapping, MutableMapping

import mlx.core as mx

from server.observe.fleet import PairSpeed
from server.protocol.setting import SettingError, parse
from server.protocol.settings_table import BY_NAME
from server.startup.domains import UsedUp, counted
from server.startup.handshake import Mismatch, promised_group
from server.startup.link_errors import Kind, explain
from server.startup.pairs import Stranger, Tell, plan_rounds, prove_pairs, run_token
from server.startup.wiring import Wiring, read_wiring
from server.wire.link import Link
from server.wire.link_speed import time_pairs

DOMAINS = BY_NAME["PROTECTION_DOMAINS"]
PAUSE_S = 0.2  # between two tries; MLX's own waits are longer


class ToBeMended(Exception):
    """This machine cannot join before somebody has seen to it. Not a lost peer's doing."""


class NotJoined(Exception):
    """The ranks of this run did not come together. Another try may succeed."""


class TooLate(NotJoined):
    """Another rank did not come in time, so no device was opened."""


def join(
    env: MutableMapping[str, str],
    within_s: float = 0.0,
    say: Callable[[str], None] = lambda text: None,
) -> Link:
    """Joins the ranks of this run, which may take within_s seconds to come. say is told of each try
    that came too early. Raises Mismatch for another number of ranks than the launcher meant, and
    for settings that cannot work; NotJoined when they did not find each other; ToBeMended for what
    this machine lacks."""
    backend, ranks = promised_group(env)
    if ranks == 1:
        # For one rank mlx.launch writes an empty hostfile, which MLX cannot parse.
        env.pop("MLX_HOSTFILE", None)
        return Link(mx.distributed.init())
    wiring, rank = read_wiring(env, ranks), int(env.get("MLX_RANK") or 0)
    until = time.monotonic() + within_s
    if backend == "jaccl":
        try:
            most = int(parse(DOMAINS, env.get(DOMAINS.name, "")))
            with counted(wiring.device_count(rank), TooLate, most) as told:
                if told:
                    say(told)
                group = _form_group(backend, wiring, rank, until, say)
        except (UsedUp, SettingError) as error:
            raise Mismatch(f"{wiring.host(rank)}: {error}") from None
    else:
        group = _form_group(backend, wiring, rank, until, say)
    if group.size() != ranks:
        raise Mismatch(f"the launcher started {ranks} ranks, but {group.size()} joined")
    return Link(group)


def _form_group(
    backend: str,
    wiring: Wiring,
    rank: int,
    until: float,
    say: Callable[[str], None],
) -> mx.distributed.Group:
    while True:
        try:
            return mx.distributed.init(strict=True, backend=backend)
        except Exception as error:
            meaning = explain(str(error))
            text = f"{error}" + (f": {meaning.text}" if meaning else "")
            if meaning and meaning.is_own:
                kind = Mismatch if meaning.kind is Kind.FIX else ToBeMended
                raise kind(f"{wiring.host(rank)} cannot join over {backend}: {text}") from error
            left = until - time.monotonic()
            if left <= 0 or not _is_early(str(error), backend, rank, wiring.size):
                kind = TooLate if meaning and meaning.kind is Kind.LATE else NotJoined
                raise kind(f"the ranks did not join over {backend}: {text}") from error
            say(f"not all ranks are there yet, trying for {left:.0f} s more: {text}")
            time.sleep(min(PAUSE_S, left))


def _is_early(error: str, backend: str, rank: int, ranks: int) -> bool:
    """Whether another try of this rank alone may succeed. In a larger ring the last rank connects
    before it accepts; the others have accepted a neighbour by then, which will not come again, so
    all must start again."""
    if "Couldn't connect" not in error:
        return False
    return backend != "ring" or ranks == 2 or rank == ranks - 1


def meet(
    link: Link,
    env: Mapping[str, str],
    run_id: str,
    tell: Tell = lambda stage, extra_s: None,
) -> tuple[PairSpeed, ...]:
    """Proves every link, and that all who joined are of this run; then times those to higher
    ranks. tell is called with what comes next, and how much longer than others it may take. Raises
    NotJoined."""
    if link.size == 1:
        return ()
    wiring = read_wiring(env, link.size)
    try:
        prove_pairs(link, wiring, run_id, tell)
    except Stranger as stranger:
        raise NotJoined(str(stranger)) from None
    except RuntimeError as error:
        raise NotJoined(f"the ranks joined, and lost each other at once: {error}") from error
    prove_peers(link, run_id)
    tell("timing each link", 0.0)
    try:
        return time_pairs(link, [pair for _, pair in plan_rounds(wiring)])
    except RuntimeError as error:
        raise NotJoined(f"the ranks lost each other as their links were timed: {error}") from error


def prove_peers(link: Link, run_id: str) -> None:
    """One sum in which each rank has a place for the run's name: whoever joined is of this run."""
    token = run_token(run_id)
    mine = [token if rank == link.rank else 0 for rank in range(link.size)]
    try:
        total = link.sum(mx.array(mine, dtype=mx.int32))
        mx.eval(total)
    except Exception as error:
        raise NotJoined(f"the ranks joined, and lost each other at once: {error}") from error
    if total.tolist() != [token] * link.size:
        raise NotJoined(
            "what joined is not this run's ranks alone: another server's, or a stranger, "
            "connected to a port where ranks meet"
        )


def name_backend(env: Mapping[str, str]) -> str:
    """What carries the collectives: "ring", "jaccl", "jaccl-ring", or "none" for a single rank."""
    backend, ranks = promised_group(env)
    if ranks == 1:
        return "none"
    around = env.get("MLX_JACCL_RING") or env.get("JACCL_RING")
    return "jaccl-ring" if backend == "jaccl" and around else backend
