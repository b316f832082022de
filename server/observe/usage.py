"""Who used how much: requests for answers and their tokens, in all and by the label of their key.

Kept by the Recorder, under its lock. A label is the operator's word, so there are few; but a file
of keys can be written anew without end, so only the first LABELS_KEPT are counted apart.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from server.observe.account import OUTCOMES, Account
from server.protocol.printable import printable

LABELS_KEPT = 200
LABEL_CHARS = 100
OTHERS = "(others)"


@dataclass
class Tokens:
    """As the answers' `usage` counts them."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0

    def add(self, account: Account) -> None:
        """Those of a request, so far or at its end."""
        generation = account.generation
        if generation is None:
            return
        usage = generation.usage()
        # A prompt counts when it has brought its first token; an input, when it is embedded.
        if usage.completion or not generation.finish_reasons():
            self.prompt += usage.prompt
            self.cached += usage.cached
            self.generated += usage.completion


@dataclass
class Usage:
    """Of one label. outcomes: of requests that have ended."""

    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    tokens: Tokens = field(default_factory=Tokens)


def shown(label: str) -> str:
    """A label as it is shown: printable, and not without end."""
    text = printable(label[:LABEL_CHARS])
    return text if len(label) <= LABEL_CHARS else f"{text[: LABEL_CHARS - 3]}..."


class Usages:
    """By label; that of a server without keys is empty."""

    def __init__(self) -> None:
        self._of: dict[str, Usage] = {}

    def expect(self, labels: Iterable[str]) -> None:
        """These are shown before their first request, too."""
        for label in labels:
            self._at(label)

    def end(self, account: Account) -> None:
        """A request for an answer is over. One with no key, or a wrong one, is nobody's."""
        if account.generates and account.key is not None:
            usage = self._at(account.key)
            usage.outcomes[account.outcome] += 1
            usage.tokens.add(account)

    def with_running(self, running: list[Account]) -> dict[str, Usage]:
        """A copy, the tokens of the running ones counted."""
        every = Usages()
        every._of = {
            label: Usage(dict(one.outcomes), Tokens(**vars(one.tokens)))
            for label, one in self._of.items()
        }
        for account in running:
            if account.key is not None:
                every._at(account.key).tokens.add(account)
        return every._of

    def _at(self, label: str) -> Usage:
        name = shown(label)
        if name not in self._of and len(self._of) >= LABELS_KEPT:
            name = OTHERS
        return self._of.setdefault(name, Usage())
