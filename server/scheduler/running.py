"""What rank 0 knows of a ticket that is on the ranks, will be, or was taken off for a while.

The scheduler's alone, on rank 0's main thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from server.protocol.events import Scored, Token
from server.sampling.row_state import Row
from server.scheduler.prefix_index import Plan
from server.scheduler.queue import Ticket
from server.wire.messages import Submit


@dataclass
class Running:
    """A ticket on the ranks. row is its sampling state, generated its tokens so far."""

    ticket: Ticket
    row: Row
    generated: list[int]

    @classmethod
    def begin(cls, ticket: Ticket, vocab: int, eos: tuple[int, ...]) -> "Running":
        """With nothing generated."""
        row = Row(
            ticket.common,
            ticket.prompt,
            vocab,
            eos,
            choice=ticket.choice,
            grammar=ticket.grammar,
        )
        return cls(ticket, row, [])

    def take(self, token: Token) -> Token:
        """It has got one more. Returns it with its score."""
        if not self.generated and (scores := self.row.take_prompt_scores()):
            self.ticket.put(Scored(scores))
        token = replace(token, score=self.row.take_score())
        self.generated.append(token.id)
        if self.row.guess is not None:
            self.row.guess.hear([token.id], len(self.generated))
        return token

    @property
    def tokens(self) -> list[int]:
        """Its prompt, and what it has generated."""
        return [*self.ticket.prompt, *self.generated]

    @property
    def length(self) -> int:
        """Tokens in its cache."""
        return len(self.ticket.prompt) + len(self.generated)

    @property
    def left(self) -> int:
        """Tokens that it may still generate."""
        return self.ticket.max_tokens - len(self.generated)


def submit_of(choices: Sequence[Running], plan: Plan, score: bool) -> Submit:
    """What has the ranks begin: choices of one prompt. score: its log-probabilities, too."""
    first, *others = choices
    ticket, common = first.ticket, first.ticket.common
    return Submit(
        ticket.uid,
        first.tokens,
        first.left,
        common.ignore_eos,
        common.stop_token_ids,
        forks=tuple(one.ticket.uid for one in others),
        score=score,
        reuse=(plan.entry, plan.length) if plan.length else (),
        keep=plan.keep,
        store=plan.store,
        draws=tuple(draw for one in choices if (draw := one.row.draw(one.ticket.uid))),
    )
