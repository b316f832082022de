"""Scenes for drafts: a file that is written again, JSON by a schema, and prose, where none pay.

Called as those of scenes.py. Both sides of a check get the same prompts and seeds, so they write
the same text. Beside tokens_per_s each tells tokens_per_step, drafted and drafts_right where the
server does; these do not depend on how busy the machine is.
"""

import json
import random

from scripts.lib.bench.contenders import Broken, WebServer
from scripts.lib.bench.copier import FILE
from scripts.lib.bench.load import Load
from scripts.lib.bench.scenes import RAMP_S, Scene, closed_loop
from scripts.lib.bench.swarm import Call

DEADLINE_S = 1800.0  # on a machine that does much else
KEYS = (
    "name_of_the_responsible_department", "number_of_employees_at_the_end_of_the_year",
    "is_open_on_saturdays_and_on_sundays", "preferred_language_of_correspondence",
    "number_of_unanswered_letters_this_month", "has_been_inspected_since_the_last_renovation",
    "kind_of_heating_in_the_main_building", "number_of_rooms_with_a_window_to_the_garden",
)  # fmt: skip
VALUES = (
    {"enum": ["sales", "research", "accounting"]}, {"type": "integer", "minimum": 1, "maximum": 99},
    {"type": "boolean"}, {"enum": ["English", "French", "German"]},
)  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {key: VALUES[n % len(VALUES)] for n, key in enumerate(KEYS)},
    "required": list(KEYS),
    "additionalProperties": False,
}
TOPICS = (
    "the sea", "a dog and a train", "baking bread", "how a bicycle works", "three days in Rome",
    "a broken heating", "the colour of the sky", "a chess club", "an old radio", "learning to swim",
)  # fmt: skip


def rewrite(output: int) -> Scene:
    """The beginning of a file, written again by a model of copier.py, to so many tokens."""

    def scene(server: WebServer, tag: str) -> dict[str, float]:
        texts = json.loads((server.place.model / FILE).read_text("utf-8"))
        fields = {"prompt": texts["prompt"], "max_tokens": output, "temperature": 0}
        load = _ask(server, "/v1/completions", [fields])
        text = load.answers[0].text
        # Some servers leave out the blank that an answer begins with.
        if not texts["answer"].lstrip().startswith(text.lstrip()):
            raise Broken(f"{server.name} wrote something else: {text[:200]!r}")
        return _tell(load)

    return scene


def schema(answers: int) -> Scene:
    """JSON with long keys, so many answers one after another."""

    def scene(server: WebServer, tag: str) -> dict[str, float]:
        wanted = {"name": "office", "strict": True, "schema": SCHEMA}
        bodies = [
            {
                "messages": [{"role": "user", "content": f"Describe office {tag} {n} as JSON."}],
                "max_tokens": 400,
                "temperature": 0,
                "response_format": {"type": "json_schema", "json_schema": wanted},
            }
            for n in range(answers)
        ]
        load = _ask(server, "/v1/chat/completions", bodies)
        for answer in load.answers:
            if list(json.loads(answer.text)) != list(KEYS):
                raise Broken(f"{server.name} wrote something else: {answer.text[:200]!r}")
        return _tell(load)

    return scene


def prose(clients: int, output: int) -> Scene:
    """Texts at temperature 1, from so many clients at once."""

    def scene(server: WebServer, tag: str) -> dict[str, float]:
        chance = random.Random(tag)
        bodies = [
            {
                "messages": [
                    {"role": "user", "content": f"Tell me about {chance.choice(TOPICS)}."}
                ],
                "max_tokens": output,
                "temperature": 1,
                "seed": chance.randrange(2**31),
            }
            for _ in range(clients)
        ]
        return _tell(_ask(server, "/v1/chat/completions", bodies, clients))

    return scene


def _ask(server: WebServer, path: str, bodies: list[dict], clients: int = 1) -> Load:
    """Raises Broken where one of them fails."""

    def make(client: int, number: int) -> Call:
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        return Call(path, bodies[number] | streamed, DEADLINE_S)

    load = closed_loop(
        server.swarm, clients, make, requests=len(bodies), ramp_s=RAMP_S * (clients - 1)
    )
    if load.failures:
        raise Broken(f"{server.name}: {load.failures} {load.answers[0].detail}")
    return load


def _tell(load: Load) -> dict[str, float]:
    told = {key: value for key, value in load.drafts.items() if value is not None}
    return {"tokens_per_s": load.tokens_per_s} | told
