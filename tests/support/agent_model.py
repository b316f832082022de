"""A front end for agents: an engine that says what a test has written, in a model family's own
format, and a template that shows all of a conversation. Only the model is made up."""

import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from server.observe.account import Account
from server.protocol.events import Event
from server.scheduler.queue import Ticket
from tests.support.families import FAMILIES, Family, write_tokenizer
from tests.support.fields_seen import Recording
from tests.support.front_end import FrontEnd, Speaker

BY_NAME = {family.name: family for family in FAMILIES}
DEFAULT = BY_NAME["qwen3.5"]
KEY = "right"
CONTEXT = 2**18  # an agent's own prompt is long
WAIT_S = 120.0  # against a hang
SHOWS_ALL = (
    "{% if tools %}<|turn|>tools\n{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|turn|>{{ m | tojson }}\n{% endfor %}"
    "{% if add_generation_prompt %}"
)
# What it says next: a text, or events of its own making.
Step = str | Callable[[Ticket], Iterator[Event]]


class Thinker(Speaker):
    """Ends a thought at once where it is held to a grammar."""

    def _choose(self, mask, chance) -> int:
        if mask is None:
            return self.tokenizer.convert_tokens_to_ids("</think>")
        return super()._choose(mask, chance)


class AgentModel:
    """One server, through all the lives that a test gives it.

    answers: what it says next, each once, to those whose answer has no grammar. prompts_seen: what
    it was asked, as text. aside: what else it says, to prompts that hold the key. closed: the
    requests that are over.
    """

    def __init__(
        self,
        folder: Path | None = None,
        family: str = DEFAULT.name,
        context: int = CONTEXT,
        **env: str,
    ) -> None:
        self.family = BY_NAME[family]
        self.folder = folder or Path(tempfile.mkdtemp(prefix="agent-"))
        _write_model(self.family, self.folder)
        self.answers: list[Step] = []
        self.prompts_seen: list[str] = []
        self.recording = Recording()
        self.closed: list[Account] = []
        self.aside: dict[str, Callable[[Ticket], Iterator[Event]]] = {}
        self._changed = threading.Condition()
        self._settings = {"context": context, **env}
        self._life = 0
        self.front = self._begin()

    def _begin(self, **how) -> FrontEnd:
        self._life += 1
        life = self._life
        front = FrontEnd(self.folder, on_closed=self._note_closed, **how, **self._settings)
        front.speaker = Thinker(front.speaker.tokenizer, front.speaker.vocab)
        front.engine.script = self._say_next
        app = self.recording.of(front.app)

        def answer(exchange) -> None:
            if self._life != life:
                # The process is gone, and its connections with it.
                exchange.close_connection = True
                raise ConnectionResetError
            app(exchange)

        front.server.app = answer
        return front

    def begin_again(self, loading: bool) -> None:
        """Another run of the server at the same address."""
        self.front.end()
        self.front = self._begin(port=self.front.server.port, loading=loading)

    @property
    def url(self) -> str:
        return self.front.url

    @property
    def root(self) -> str:
        return self.front.root

    @property
    def engine(self):
        return self.front.engine

    @property
    def ask(self):
        return self.front.ask

    def end(self) -> None:
        self.front.end()

    # What it says.

    def thought(self, text: str) -> str:
        """A thought, or the end of one that the prompt has begun."""
        return self.family.think(text)

    def call(self, name: str, **arguments) -> str:
        """One call, as the family writes it."""
        return _write_call(self.family, name, arguments)

    def speak(self, text: str, ticket: Ticket) -> Iterator[Event]:
        """The text, token by token."""
        self.front.speaker.text = text
        return self.front.speaker(ticket)

    def _say_next(self, ticket: Ticket) -> Iterator[Event]:
        prompt = self.front.prompts.decode(ticket.prompt)
        for told, step in self.aside.items():
            if told in prompt:
                return step(ticket)
        self.prompts_seen.append(prompt)
        if ticket.grammar is not None:
            return self.front.speaker(ticket)
        step = self.answers.pop(0)
        return step(ticket) if callable(step) else self.speak(step, ticket)

    # What became of it.

    def _note_closed(self, account: Account) -> None:
        with self._changed:
            self.closed.append(account)
            self._changed.notify_all()

    def refused(self, status: int) -> int:
        """How many requests have ended with this error."""
        return sum(one.error is not None and one.error.status == status for one in self.closed)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until the end of some request makes it true."""
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S)


def _write_model(family: Family, folder: Path) -> None:
    write_tokenizer(family, folder, ["<function=exec_command>\n<parameter=cmd>\n"] * 3)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    telltale = config["chat_template"].partition("{% if false %}")[2]
    config["chat_template"] = f"{SHOWS_ALL}{family.prompt}{{% endif %}}{{% if false %}}{telltale}"
    path.write_text(json.dumps(config))
    (folder / "config.json").write_text("{}")


def _write_call(family: Family, name: str, arguments: dict) -> str:
    written = family.call(name, json.dumps(arguments, ensure_ascii=False))
    return family.calls([written])


def thought(text: str) -> str:
    """The end of a thought that the prompt has begun."""
    return DEFAULT.think(text)


def call(name: str, **arguments: str) -> str:
    """A call as Qwen3-Coder writes it."""
    return _write_call(DEFAULT, name, arguments)
