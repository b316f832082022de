"""The snippets of docs/clients.md, by client: what to paste, with the places to fill in.

A client is a heading of the second level; its snippets are the fenced blocks below, in order.
"""

import re
from dataclasses import dataclass

from tests.support.paths import ROOT

TEXT = (ROOT / "docs/clients.md").read_text(encoding="utf-8")
PLACES = ("url", "model", "small", "key", "context")


@dataclass(frozen=True)
class Snippet:
    """language: as the block names it. python and bash are run by the tests as they stand; py and
    sh are not, as they need what the tests do not install."""

    client: str
    language: str
    code: str

    def filled(self, **places: str) -> str:
        """With the server's URL, the models, the key and the context in place."""
        code = self.code
        for name, text in places.items():
            code = code.replace(f"{{{name}}}", text)
        return code


def snippets(text: str = TEXT) -> list[Snippet]:
    found, client = [], ""
    blocks = re.findall(r"^##+ (.*?)$|^```(\w+)\n(.*?)^```$", text, re.M | re.S)
    for heading, language, code in blocks:
        client = heading or client
        if language:
            found.append(Snippet(client, language, code))
    return found


def snippet(client: str, language: str) -> Snippet:
    """The first of a client in this language."""
    return next(one for one in snippets() if (one.client, one.language) == (client, language))
