"""Tools of the Messages API that are known by a type, and that the client runs: bash, the text
editor, the memory and the computer.

Pure; called on rank 0's HTTP threads. A request names no more than the type, as Anthropic's own
models know these tools; any other has to be told what they do and take. Their calls come back as
those of any tool. (Of tools that a server would run see server_tools.py.)
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from server.api.dialects.turns import NAME
from server.api.fields import Fields, needed, record
from server.api.kinds import FLAG, whole
from server.api.requests import MAX_INT

Schema = dict[str, Any]
TYPE = re.compile(r"(bash|text_editor|memory|computer)_([0-9]{8})")
# Dates of types: what one of them, and later ones, have.
NO_UNDO, INSERT_TEXT = "20250429", "20250728"  # the text to insert was new_str before
MORE_ACTIONS, ZOOM = "20250124", "20251124"
FIELDS: Mapping[str, Fields] = {
    "bash": {},
    "text_editor": {},
    "memory": {},
    "computer": {
        "display_width_px": needed(whole(1, MAX_INT)),
        "display_height_px": needed(whole(1, MAX_INT)),
        "enable_zoom": FLAG,
    },
}
COMMON: Fields = {"name": needed(NAME), "strict": FLAG, "defer_loading": FLAG}
READERS = {kind: record({**COMMON, **own}).read for kind, own in FIELDS.items()}
DESCRIPTIONS = {
    "bash": "Runs a command in a bash session that lasts: directory and variables stay from call "
    "to call. Give a command, or restart: true for a new session.",
    "text_editor": "Shows and edits text files. view shows a file with its lines numbered, or "
    "lists a directory; create writes a whole file; str_replace puts new_str in the place of "
    "old_str, which must stand once in the file, to the letter; insert adds text after a line.",
    "memory": "Files under /memories that stay from one conversation to the next. view shows a "
    "file or lists a directory; create writes a whole file; str_replace and insert edit one; "
    "delete removes a file or directory; rename moves one. Look there before you begin.",
    "computer": "Mouse, keyboard and screenshots of a screen of {width} x {height} pixels. "
    "Coordinates are [x, y] from its upper left corner.",
}
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "integer"}
POINT: Schema = {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2}
REGION: Schema = {"type": "array", "items": NUMBER, "minItems": 4, "maxItems": 4}
KEYS = ("key", "type", "mouse_move", "screenshot", "cursor_position")
CLICKS = ("left_click", "left_click_drag", "right_click", "middle_click", "double_click")
MORE = ("triple_click", "left_mouse_down", "left_mouse_up", "scroll", "hold_key", "wait")


def as_function(tool: Mapping[str, Any]) -> dict[str, Any] | None:
    """Such a tool with a description and an input schema, read; None for any other. Raises
    Refused."""
    kind = tool.get("type")
    found = TYPE.fullmatch(kind) if isinstance(kind, str) else None
    if found is None:
        return None
    name, date = found.groups()
    asked = READERS[name](tool)
    told = DESCRIPTIONS[name].format(
        width=asked.get("display_width_px"), height=asked.get("display_height_px")
    )
    return {
        "type": "custom",
        "name": asked["name"],
        "description": told,
        "input_schema": SCHEMAS[name](date),
        **{name: asked[name] for name in ("strict", "defer_loading") if name in asked},
    }


def _object(properties: dict[str, Schema], *required: str) -> Schema:
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": list(required)} if required else {"minProperties": 1})


def _each(schema: Schema, needs: Mapping[str, tuple[str, ...]]) -> Schema:
    """The schema of a tool that does several things, the first of its properties saying which.
    needs: what some of them must have beside it."""
    tag = schema["required"][0]
    of_each: dict[tuple[str, ...], list[str]] = {}
    for word in schema["properties"][tag]["enum"]:
        required = tuple(name for name in needs.get(word, ()) if name in schema["properties"])
        of_each.setdefault(required, []).append(word)
    cases = [
        {"properties": {tag: {"enum": words}}} | ({"required": [*required]} if required else {})
        for required, words in of_each.items()
    ]
    return schema | {"anyOf": cases}


def _one_of(*words: str) -> Schema:
    return TEXT | {"enum": list(words)}


def _told(schema: Schema, words: str) -> Schema:
    return schema | {"description": words}


def _files(insert_text: bool) -> Iterator[tuple[str, Schema]]:
    yield "view_range", _told(POINT, "Of view: first and last line, from 1 on; -1: the end.")
    yield "file_text", _told(TEXT, "Of create: all of the file.")
    yield "old_str", _told(TEXT, "Of str_replace: what is there.")
    new = "Of str_replace: what is to be there."
    yield "new_str", _told(TEXT, new if insert_text else f"{new} Of insert: the text.")
    yield "insert_line", _told(NUMBER, "Of insert: the line after which; 0: at the start.")
    if insert_text:
        yield "insert_text", _told(TEXT, "Of insert: the text.")


def _editing(date: str) -> Iterator[tuple[str, Schema]]:
    undo = () if date >= NO_UNDO else ("undo_edit",)
    yield "command", _one_of("view", "create", "str_replace", "insert", *undo)
    yield "path", _told(TEXT, "Absolute path of the file or directory.")
    yield from _files(date >= INSERT_TEXT)


def _remembering() -> Iterator[tuple[str, Schema]]:
    yield "command", _one_of("view", "create", "str_replace", "insert", "delete", "rename")
    yield "path", _told(TEXT, "Of all but rename: below /memories.")
    yield from _files(True)
    yield "old_path", _told(TEXT, "Of rename.")
    yield "new_path", _told(TEXT, "Of rename.")


def _pointing(date: str) -> Iterator[tuple[str, Schema]]:
    more = MORE if date >= MORE_ACTIONS else ()
    zoom = ("zoom",) if date >= ZOOM else ()
    yield "action", _one_of(*KEYS, *CLICKS, *more, *zoom)
    yield "coordinate", _told(POINT, "Where: of clicks, mouse_move, scroll, the end of a drag.")
    yield "text", _told(TEXT, "What to type; a key or keys, as in ctrl+s; held during a click.")
    if more:
        yield "start_coordinate", _told(POINT, "Of left_click_drag: where it begins.")
        yield "scroll_direction", _one_of("up", "down", "left", "right")
        yield "scroll_amount", _told(NUMBER, "Of scroll: how many clicks of the wheel.")
        yield "duration", _told({"type": "number"}, "Of hold_key and wait: seconds.")
    if zoom:
        yield "region", _told(REGION, "Of zoom: [x0, y0, x1, y1].")


EDITS = {
    "create": ("file_text",),
    "str_replace": ("old_str",),  # without new_str it is deleted
    "insert": ("insert_line",),
}
REMEMBERS = {
    **{word: ("path", *needs) for word, needs in EDITS.items()},
    "view": ("path",),
    "delete": ("path",),
    "rename": ("old_path", "new_path"),
}
POINTS = {
    **dict.fromkeys(("key", "type"), ("text",)),
    **dict.fromkeys(("mouse_move", "left_click_drag"), ("coordinate",)),
    "scroll": ("scroll_direction",),
    "hold_key": ("text", "duration"),
    "wait": ("duration",),
    "zoom": ("region",),
}
SCHEMAS = {
    "bash": lambda date: _object({"command": TEXT, "restart": {"type": "boolean"}}),
    "text_editor": lambda date: _each(_object(dict(_editing(date)), "command", "path"), EDITS),
    "memory": lambda date: _each(_object(dict(_remembering()), "command"), REMEMBERS),
    "computer": lambda date: _each(_object(dict(_pointing(date)), "action"), POINTS),
}
