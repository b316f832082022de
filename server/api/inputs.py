"""Prompts and inputs of a request: text or token ids, one or an array of them.

Pure; called on rank 0's HTTP threads.
"""

from typing import Any

from server.api.kinds import TEXT, Kind, Refused, array, text
from server.api.openapi.words import any_of
from server.api.openapi.words import array as array_schema
from server.api.requests import TOKEN_ID

NOT_EMPTY = "non-empty text, or a non-empty array of token ids"
TEXT_INPUT, IDS_INPUT = text(least=1), array(TOKEN_ID, least=1)


def inputs(most: int) -> Kind:
    """One of these, or an array of at most so many; read as an array. Whether texts are empty, and
    token ids the model's, is for later: there may be a million of them."""
    words = f"text, token ids, or an array of 1 to {most} of either"
    one = any_of(TEXT_INPUT.schema, IDS_INPUT.schema)

    def read(value: Any) -> list[str | list[int]]:
        single = isinstance(value, str) or (isinstance(value, list) and _is_ids(value))
        several = [value] if single else value
        if not isinstance(several, list) or not 0 < len(several) <= most:
            raise Refused(value, words)
        for each in several:
            if isinstance(each, str):
                TEXT.read(each)
            elif not (isinstance(each, list) and _is_ids(each)):
                raise Refused(each, NOT_EMPTY)
        return several

    schema = any_of(TEXT_INPUT.schema, IDS_INPUT.schema, array_schema(one, 1, most))
    return Kind(read, schema, words)


def _is_ids(value: list) -> bool:
    return bool(value) and all(isinstance(i, int) and not isinstance(i, bool) for i in value)
