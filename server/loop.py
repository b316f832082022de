"""The lockstep loop: the same turns, in the same order, on the main thread of every rank.

A turn is: step the engine, which delivers its tokens, learn rank 0's header (from the step's own
collective, or by meeting for it), carry out the messages that the header announces. Everything
that steers the loop is shared data, so that no two ranks can take different branches.
"""

from collections.abc import Callable

from server.director import Director, Spectator
from server.engine import Engine
from server.mailbox import Mailbox
from server.messages import Canary, Cancel, Cut, Evict, Shutdown, Submit


def run_lockstep(
    engine: Engine,
    mailbox: Mailbox,
    director: Director | Spectator,
    canary: Callable[[Callable[[str], None]], None],
    progress: Callable[[str], None],
) -> str:
    """Turns until a Shutdown message; returns its reason.

    progress is called with the name of what comes next, before each thing that can block: the
    watchdog's food. canary is what a Canary message asks for.
    """
    while True:
        header = None
        if engine.busy:
            progress("engine step")
            header = engine.step(director.deliver).header
        if header is None:
            progress("meeting")
            header = mailbox.meet()
        engine.steer(header)
        progress("messages")
        for message in mailbox.receive(header):
            match message:
                case Submit():
                    try:
                        engine.submit(message)
                    except Exception as error:
                        # Made of shared data alone, so every rank fails here in the same way.
                        director.refused(message.uid, error)
                case Cancel(uid):
                    engine.cancel(uid)
                case Cut(entry, length):
                    engine.prefixes.cut(entry, length)
                case Evict(entries):
                    engine.prefixes.drop(entries)
                case Canary():
                    canary(progress)
                case Shutdown(reason):
                    return reason
        if header.nap_ms and not engine.busy:
            progress("nap")
            director.nap(header.nap_ms)
