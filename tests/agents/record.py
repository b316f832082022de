"""Records what a client sends: `python -m tests.agents.record CLIENT VERSION [ANSWER...]`.

It prints the base URL and the key of a front end whose model gives these answers, one after another
(each as JSON: ["a text"], or ["tool", {"argument": "value"}]), and waits for the end of its input.
Then it adds what it was sent to tests/agents/recorded, as fields_seen.py keeps it: of this the
tables in docs/api.md are made, and tests hold the server to it.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from server.protocol.events import Event
from server.scheduler.queue import Ticket
from tests.support.agent_model import KEY, AgentModel
from tests.support.fields_seen import check_kept


def written(model: AgentModel, answer: list[Any]) -> str:
    """An answer as the model writes it."""
    said = answer[0] if len(answer) == 1 else model.call(answer[0], **answer[1])
    return model.thought("x") + said


def say_next(model: AgentModel, answers: list[str], ticket: Ticket) -> Iterator[Event]:
    """The next answer to those who have tools; a word to others, such as who wants a title."""
    begin = model.front.prompts.decode(ticket.prompt[:8])
    more = answers and "<|turn|>tools" in begin
    return model.speak(answers.pop(0) if more else written(model, ["Done."]), ticket)


def main(client: str, version: str, *given: str) -> None:
    model = AgentModel(MODEL_ALIASES="*")
    answers = [written(model, json.loads(answer)) for answer in given]
    model.engine.script = lambda ticket: say_next(model, answers, ticket)
    print(model.url, KEY, flush=True)
    sys.stdin.read()
    model.end()
    print(*model.recording.asked, sep="\n", file=sys.stderr)
    os.environ["FIELDS_SEEN"] = "write"
    check_kept(client, [model.recording], version)


if __name__ == "__main__":
    main(*sys.argv[1:])
