"""The lockstep loop: the same turns, in the same order, on the main thread of every rank.

A turn is: step the engine, which delivers its tokens, learn rank 0's header (from the step's own
collective, or by meeting for it), carry out the messages that the header announces. Everything
that steers the loop is shared data, so that no two ranks can take different branches.
"""

from collections.abc import Callable

from server.engine.engine import Engine
from server.engine.prefix_disk import PrefixDisk
from server.engine.turn import Turn
from server.lifecycle.turn_times import CHUNK, STEP
from server.protocol.failures import is_shared
from server.scheduler.scheduler import Scheduler
from server.scheduler.spectator import Spectator
from server.wire.mailbox import Mailbox
from server.wire.messages import Canary, Cancel, Cut, Evict, Message, OnDisk, Shutdown, Submit


def run_lockstep(
    engine: Engine,
    mailbox: Mailbox,
    scheduler: Scheduler | Spectator,
    canary: Callable[[Callable[[str], None]], None],
    progress: Callable[[str], None],
    observe: Callable[[Turn], None] = lambda turn: None,
    disk: PrefixDisk | None = None,
) -> str:
    """Turns until a Shutdown message; returns its reason.

    progress is called with the name of what comes next, before each thing that can block: the
    watchdog's food. canary is what a Canary message asks for. observe is called with every turn of
    the engine's, for its times. disk: this rank's kept prefixes on it, where they are kept there.
    """
    reason = None
    while reason is None:
        reason = turn(engine, mailbox, scheduler, canary, progress, observe, disk)
    return reason


def turn(
    engine: Engine,
    mailbox: Mailbox,
    scheduler: Scheduler | Spectator,
    canary: Callable[[Callable[[str], None]], None],
    progress: Callable[[str], None],
    observe: Callable[[Turn], None] = lambda turn: None,
    disk: PrefixDisk | None = None,
) -> str | None:
    """One turn. Returns the reason to leave the loop, if there is one."""
    header = None
    if engine.busy:
        progress(CHUNK if engine.prefilling else STEP)
        stepped = engine.step(scheduler.deliver)
        observe(stepped)
        header = stepped.header
    if header is None:
        progress("meeting")
        header = mailbox.meet()
    engine.steer(header)
    progress("messages")
    for message in mailbox.receive(header):
        progress(f"message {type(message).__name__}")  # each may take a while, and many may come
        match message:
            case Canary():
                canary(progress)
            case Shutdown(reason):
                return reason
            case _ if isinstance(message, OnDisk):
                scheduler.settled(disk.carry_out(message, engine.prefixes))
            case _:
                _carry_out(message, engine, scheduler)
    if disk is not None:
        disk.advance(engine.busy)
    if not engine.busy:
        engine.prefixes.compute()  # else the next step does
    if header.nap_ms and not engine.busy:
        progress("nap")
        scheduler.nap(header.nap_ms)
    return None


def _carry_out(message: Message, engine: Engine, scheduler: Scheduler | Spectator) -> None:
    """What a message asks of the engine. Where its data are at fault, they are so on every rank:
    all give up the same, and only the request that it is about fails."""
    try:
        match message:
            case Submit():
                engine.submit(message)
            case Cancel(uid, keep):
                if kept := engine.cancel(uid, keep):
                    scheduler.deliver(Turn([], kept))
            case Cut(entry, length):
                engine.prefixes.cut(entry, length)
            case Evict(entries):
                engine.prefixes.drop(entries)
    except Exception as error:
        if not is_shared(error):
            raise
        _give_up(message, error, engine, scheduler)


def _give_up(
    message: Message, error: Exception, engine: Engine, scheduler: Scheduler | Spectator
) -> None:
    """Takes what a failed message was about off this rank, as every rank does now."""
    uids, entries = (), ()
    match message:
        case Submit(uid, forks=forks):
            uids = {one for own in (uid, *forks) for one in (own, *engine.give_up(own))}
            entries = message.reuse[:1]  # or the next prompt that begins so would fail again
        case Cancel(uid):
            uids = engine.give_up(uid)
        case Cut(entry):
            entries = (entry,)
        case Evict():
            entries = message.entries
    # Not at once: other messages of this bundle may count on them, and fail no more than they must.
    scheduler.distrust(entries)
    for uid in sorted(uids):
        scheduler.refused(uid, error)
