"""A front end for agents: an engine that says what a test has written, in a model family's own
format, and a template that shows all of a conversation. Only the model is made up."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from server.api.model_routes import Model
from server.observe.views import Capacity
from server.protocol.events import Event
from server.protocol.requests import Sampling
from server.scheduler.queue import Ticket
from tests.support.families import FAMILIES, write_tokenizer
from tests.support.front_end import FrontEnd, Speaker

CONTEXT = 2**18  # an agent's own prompt is long
FAMILY = next(family for family in FAMILIES if family.name == "qwen3.5")
SHOWS_ALL = (
    "{% if tools %}<|turn|>tools\n{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|turn|>{{ m | tojson }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n<think>\n{% endif %}"
)


class Thinker(Speaker):
    """Ends a thought at once where it is held to a grammar."""

    def _choose(self, mask, chance) -> int:
        if mask is None:
            return self._tokenizer.convert_tokens_to_ids("</think>")
        return super()._choose(mask, chance)


class AgentModel(FrontEnd):
    """answers: what it says next, each once, to those whose answer has no grammar. prompts_seen:
    what it was asked, as text."""

    def __init__(self, folder: Path | None = None, **env: str) -> None:
        from mlx_lm.tokenizer_utils import load

        folder = folder or Path(tempfile.mkdtemp(prefix="agent-"))
        write_tokenizer(FAMILY, folder, ["<function=exec_command>\n<parameter=cmd>\n"] * 3)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        telltale = config["chat_template"].partition("{% if false %}")[2]
        config["chat_template"] = SHOWS_ALL + "{% if false %}" + telltale
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "config.json").write_text("{}")
        super().__init__(folder, **env)
        tokenizer = load(folder)
        self.speaker = Thinker(tokenizer, len(tokenizer.get_vocab()))
        self.app.model_loaded(Model(self.prompts, CONTEXT, Sampling(), "fp_agent"))
        self.status.publish(Capacity(CONTEXT))
        self.answers: list[str] = []
        self.prompts_seen: list[str] = []
        self.engine.script = self._say_next

    def _say_next(self, ticket: Ticket) -> Iterator[Event]:
        self.prompts_seen.append(self.prompts.decode(ticket.prompt))
        if ticket.grammar is None:
            self.speaker.text = self.answers.pop(0)
        return self.speaker(ticket)


def thought(text: str) -> str:
    """The end of a thought that the prompt has begun."""
    return f"{text}\n</think>\n\n"


def call(name: str, **arguments: str) -> str:
    """A call as Qwen3-Coder writes it."""
    return FAMILY.call(name, json.dumps(arguments))
