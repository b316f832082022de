"""Computes the prompts that PREFIX_WARM names, as requests of nobody's.

On a thread of rank 0's, once the model is loaded: its tickets go through the line as all do, one at
a time, each for one token. What cannot be computed is told in the log, and keeps nobody from
serving.
"""

import logging
import queue
import time
from collections.abc import Callable, Sequence

from server.api.models import Model
from server.api.warm_files import Warm
from server.protocol.client import SERVER
from server.protocol.errors import ApiError
from server.protocol.events import Failed, Token
from server.protocol.requests import Common, Places, Sampling
from server.scheduler.queue import Line, Ticket

AGAIN_S = 1.0  # before a full line is asked again
POLL_S = 1.0

log = logging.getLogger(__name__)


class WarmUp:
    """tell: what comes next, and how it went. owner: who may go on from what is kept. fits: whether
    so many tokens can be kept."""

    def __init__(
        self,
        prompts: Sequence[Warm],
        model: Model,
        line: Line,
        tell: Callable[[str], None],
        owner: str,
        fits: Callable[[int], bool],
    ) -> None:
        self._prompts, self._model, self._line = prompts, model, line
        self._tell, self._owner, self._fits = tell, owner, fits

    def run(self) -> None:
        """All of them, in order; until the line is closed."""
        began, tokens, failed = time.monotonic(), 0, 0
        for number, one in enumerate(self._prompts, 1):
            self._tell(f"warming prefixes: {number} of {len(self._prompts)}")
            try:
                ticket = self._ticket(one)
                if not self._compute(ticket):
                    return
                tokens += len(ticket.prompt)
            except ApiError as error:
                failed += 1
                log.warning("PREFIX_WARM: %s: not computed: %s", one.origin, error.message)
        log.info(
            "warmed %d prefixes of %d tokens in %.1f s%s",
            len(self._prompts) - failed,
            tokens,
            time.monotonic() - began,
            f"; {failed} could not be computed, see above" if failed else "",
        )

    def _ticket(self, one: Warm) -> Ticket:
        """Raises ApiError where the template refuses it, it does not fit, or cannot be kept."""
        prompts, context = self._model.prompts, self._model.context
        if one.instructions:
            ids = prompts.instructions(one.request, context=context)
            # The last token is there to be computed: what is before it is what others begin with.
            places = Places((len(ids) - 1,), len(ids) - 1)
        else:
            ids = prompts.from_chat(one.request, context=context, client=SERVER)
            places = prompts.places(one.request, ids, SERVER)
        if len(ids) >= context:
            raise ApiError(400, f"It has {len(ids)} tokens, and the context {context}.")
        if not self._fits(len(ids)):
            raise ApiError(400, f"It has {len(ids)} tokens, and PREFIX_CACHE_PERCENT keeps fewer.")
        common = Common(sampling=Sampling(temperature=0), ignore_eos=True)
        return Ticket(ids, 1, common, places=places, owner=self._owner)

    def _compute(self, ticket: Ticket) -> bool:
        """False when nothing more will be computed. Raises ApiError when this was not."""
        while True:
            try:
                self._line.admit([ticket])
                break
            except ApiError as error:
                if error.status != 429:  # the line is closed
                    return False
                time.sleep(AGAIN_S)
        try:
            while True:
                try:
                    _, event = ticket.events.get(timeout=POLL_S)
                except queue.Empty:
                    continue  # the watchdogs see to it that there will be one
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Token) and event.finish is not None:
                    return True
        finally:
            self._line.answered(ticket)
