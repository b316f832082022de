"""The lockstep loop: the same turns, in the same order, on the main thread of every rank.

A turn is: step the engine whose turn it is, which delivers its tokens, learn rank 0's header (from
the step's own collective, or by meeting for it), carry out the messages that the header announces,
and go on with a model that is being loaded. Everything that steers the loop is shared data, so that
no two ranks can take different branches.
"""

from collections.abc import Callable

from server.engine.engine import Engine
from server.engine.turn import Turn
from server.lifecycle.turn_times import CHUNK, STEP
from server.protocol.failures import is_shared
from server.residents import FIRST, Resident, Residents
from server.scheduler.dispatcher import Dispatcher
from server.scheduler.scheduler import Scheduler
from server.scheduler.spectator import Spectator
from server.wire.mailbox import Mailbox
from server.wire.messages import (
    Beat,
    Canary,
    Cancel,
    Cut,
    Evict,
    Load,
    Message,
    OnDisk,
    Shutdown,
    Submit,
    To,
    Unload,
)


def run_lockstep(
    residents: Residents,
    mailbox: Mailbox,
    lead: Dispatcher | Scheduler | Spectator,
    progress: Callable[[str], None],
    observe: Callable[[Turn], None] = lambda turn: None,
) -> str:
    """Turns until a Shutdown message; returns its reason.

    lead decides on rank 0 what comes next, and how long to nap. progress is called with the name of
    what comes next, before each thing that can block: the watchdog's food. observe is called with
    every turn of an engine, for its times.
    """
    reason = None
    while reason is None:
        reason = turn(residents, mailbox, lead, progress, observe)
    return reason


def turn(
    residents: Residents,
    mailbox: Mailbox,
    lead: Dispatcher | Scheduler | Spectator,
    progress: Callable[[str], None],
    observe: Callable[[Turn], None] = lambda turn: None,
) -> str | None:
    """One turn. Returns the reason to leave the loop, if there is one."""
    header, resident = None, residents.next()
    if resident is not None and resident.engine.busy:
        progress(CHUNK if residents.prefilling else STEP)
        stepped = resident.engine.step(resident.scheduler.deliver)
        observe(stepped)
        header = stepped.header
    if header is None:
        progress("meeting")
        header = mailbox.meet()
    if resident is not None:
        resident.engine.steer(header)
    resident = None  # it may be unloaded, and whatever has it would keep its weights
    progress("messages")
    number = FIRST
    for message in mailbox.receive(header):
        progress(f"message {type(message).__name__}")  # each may take a while, and many may come
        match message:
            case Shutdown(reason):
                return reason
            case To(number):
                pass
            case Load(model):
                residents.load(model)
            case Unload(model):
                residents.unload(model)
            case Beat():
                pass
            case Canary():
                residents[number].canary(progress)
            case _ if isinstance(message, OnDisk):
                _on_disk(message, residents[number])
            case _:
                _carry_out(message, residents[number].engine, residents[number].scheduler)
    if residents.loading:
        progress("loading another model")
        if failed := residents.advance():
            lead.not_loaded(*failed)
    for one in residents:
        if one.disk is not None:
            one.disk.advance(residents.busy)
        if not one.engine.busy:
            one.engine.prefixes.compute()  # else the next step does
    if header.nap_ms and not residents.busy and not residents.loading:
        progress("nap")
        lead.nap(header.nap_ms)
    return None


def _on_disk(message: OnDisk, resident: Resident) -> None:
    """What a message asks of the disk."""
    resident.scheduler.settled(resident.disk.carry_out(message, resident.engine.prefixes))


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
