"""Tools and tokenizers for tests of how calls are read, and an answer read at every cut."""

import json
from functools import cache
from pathlib import Path

from mlx_lm.tokenizer_utils import load

from server.text.chat_text import ChatText
from tests.support.answers_folded import Cut, Folded, cuts, fold
from tests.support.families import FAMILIES, Family, write_tokenizer

BY_NAME = {family.name: family for family in FAMILIES}
PROMPT = "<|turn|>assistant\n"


def tool(name: str, properties: dict, required=(), **schema) -> dict:
    parameters = {"type": "object", "properties": properties, "required": list(required), **schema}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


STRING, OPTIONAL = {"type": "string"}, {"anyOf": [{"type": "string"}, {"type": "null"}]}
TOOLS = [
    tool("write", {"path": STRING, "text": STRING}, ["path"]),
    tool("edit", {"path": STRING, "old": OPTIONAL, "new": {"type": ["string", "null"]}}, ["path"]),
    tool("now", {}),
    tool("weather", {"city": STRING, "days": {"type": "integer"}}, additionalProperties=False),
]


@cache
def tokenizer_of(name: str, folder: str):
    return load(write_tokenizer(BY_NAME[name], Path(folder) / name, ["some text <tool_call>"] * 3))


def read(folder, name, text, tools=TOOLS, finish="stop", prompt=PROMPT, every_cut=True) -> Folded:
    """The answer to text in one piece; the same at every cut."""
    tokenizer = tokenizer_of(name, folder)
    ids = tokenizer.encode(prompt, add_special_tokens=False)

    def of(pieces: list[str]) -> Folded:
        out = ChatText(Cut(tokenizer, pieces), (), set(), ids, tools)
        return fold(out, range(len(pieces)), finish)

    whole = of([text])
    for pieces in cuts(text) if every_cut else ([*text],):
        assert of(pieces) == whole, pieces
    return whole


def values(folded: Folded) -> list[tuple[str, dict]]:
    return [(name, json.loads(arguments)) for name, arguments in folded.calls]


def one(family: Family, name: str, **arguments) -> str:
    return family.calls([family.call(name, json.dumps(arguments, ensure_ascii=False))])


def family_prompt(family: Family) -> str:
    """A prompt after which the answer begins as content."""
    return "<|start|>assistant" if family.name == "gpt-oss" else PROMPT


class Counting:
    """A reader that counts the characters that it looked at."""

    def __init__(self, reader) -> None:
        self.openers, self._reader, self.chars = reader.openers, reader, 0

    def read(self, scan, tools):
        try:
            return self._reader.read(scan, tools)
        finally:
            self.chars += scan.reached + scan.vain
