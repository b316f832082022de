"""Settings of the server: read once from the environment at the entry, then passed down.

Every rank reads the same variables, but only the engine's limits matter on workers. No other
module reads the environment. What each may be stands in settings_table; here is what only the
server can tell: whether the model's folder is there, and which keys a file holds. A wrong value
raises SettingError, which names the setting, the value and what is allowed; the entry turns that
into exit code 78.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.protocol.misspelt import complaint, find_misspelt
from server.protocol.model_list import ServedModel, list_models
from server.protocol.requests import NOT_TEMPLATE_VARIABLES
from server.protocol.setting import SettingError, parse
from server.protocol.settings_table import BY_NAME, RANK, TABLE

__all__ = ["UNNAMED", "Keys", "SettingError", "Settings", "read_keys", "read_settings"]

UNNAMED = re.compile(r"key [0-9]+")  # the label that a key has by its place among all
Keys = tuple[tuple[str, str], ...]  # each with the label by which the request log knows it


@dataclass(frozen=True)
class Settings:
    """What the operator asked for. Times are in seconds, sizes in the unit of the name."""

    model_dir: Path
    model_id: str
    models: tuple[ServedModel, ...]  # all that are served; the first is MODEL_DIR's
    models_dir: str | None
    models_gb: float | None  # 10^9 bytes a rank for weights; None: what leaves room for caches
    pinned: tuple[str, ...]
    idle_unload: float  # seconds; 0: never
    model_aliases: tuple[str, ...]  # other names of it; "*": any
    chat_template_kwargs: dict[str, Any]  # where a request does not say otherwise
    parallel: str  # "auto" | "tensor" | "pipeline"
    trust_remote_code: bool  # code of the model folder may be run for its tokenizer
    http_host: str
    http_port: int
    queue_max: int  # requests waiting beyond the running ones
    max_batch: int  # requests decoding together
    default_max_tokens: int | None  # None: what the context leaves
    responses_kept: int  # answers of /v1/responses in memory, over all keys; 0: none
    req_timeout: float  # without progress
    req_total_timeout: float | None  # of a whole request; None: no limit
    drain_timeout: float
    stall_timeout: float
    load_timeout: float
    join_timeout: float  # for ranks to import what they need and to find each other
    handshake_timeout: float  # without progress, from there until they have compared themselves
    prefill_step: int  # tokens of a full prefill chunk, as when nothing decodes
    prefill_pause_ms: float  # what a chunk may add to the step of those who decode
    context_max: int | None  # tokens; None: what the model's config says
    kv_budget_gb: float | None  # 10^9 bytes a rank; None: what is left after the weights
    kv_bits: str  # "off" | "8" | "4"
    kv_bits_from: int  # tokens of a request from which on
    prefix_cache_percent: int  # of the KV memory, for prefixes of answered prompts; 0: none
    prefix_disk_gb: float | None  # 10^9 bytes of each rank's disk for them; None: none
    prefix_disk_dir: str | None  # None: the user's folder for caches
    prefix_warm: tuple[str, ...]  # files of prompts that are computed at the start
    prefix_warm_when: str  # "before" | "after" the server is ready
    speculate: str  # "auto" | "off"
    draft_model_dir: str | None  # a folder that is there on rank 0
    prefix_sharing: str  # "all" | "key"
    canary_interval: float  # seconds of idleness between two canaries; 0: only at start
    api_keys: tuple[str, ...]  # of API_KEY
    api_key_file: str | None
    keys: Keys  # of both, at the start
    operator_keys: tuple[str, ...]  # labels of those that may stop any request
    allowed_origins: tuple[str, ...]
    allowed_hosts: tuple[str, ...]  # names of this server, beside its machine's own
    log_level: str
    log_dir: Path | None  # of the request log; None: none is kept
    log_max_mb: float  # 10^6 bytes; then the request log is turned; 0: never
    log_prompts: bool
    restarts: int  # told by the supervisor, shown in /health
    last_failure: str
    supervised: bool  # started again after a fault

    @property
    def keys_apart(self) -> bool:
        """Whether what one API key has sent is of no use to another."""
        return self.prefix_sharing == "key"


def read_settings(env: Mapping[str, str], rank: int = 0) -> Settings:
    """Builds Settings from environment variables; unset or empty means the default.

    Keys are read on rank 0 alone: API_KEY_FILE need not exist elsewhere. Raises SettingError for
    a value that is not allowed.
    """
    values = {
        setting.attribute: parse(setting, env.get(setting.name, ""))
        for setting in TABLE
        if setting.read_by(RANK)
    }
    text, several = env.get("MODEL_DIR", "").strip(), values["models"] or values["models_dir"]
    first = None
    if text or not several:
        folder = _folder(text)
        first = ServedModel(values["model_id"] or folder.name, folder)
    values["models"] = list_models(first, values["models"], values["models_dir"])
    values["model_dir"], values["model_id"] = values["models"][0].folder, values["models"][0].name
    for name in values["pinned"]:
        if not any(name == one.name for one in values["models"]):
            names = ", ".join(one.name for one in values["models"])
            raise SettingError(f"PINNED={name!r}: must be of the models: {names}")
    if values["draft_model_dir"] and not rank:
        values["draft_model_dir"] = str(_folder(values["draft_model_dir"], "DRAFT_MODEL_DIR"))
    values["chat_template_kwargs"] = _variables(values["chat_template_kwargs"])
    values["log_dir"] = Path(values["log_dir"]) if values["log_dir"] else None
    for name, meant in find_misspelt(env, BY_NAME).items():
        raise SettingError(complaint(name, meant))
    if rank:
        values["api_keys"], values["api_key_file"] = (), None
    values["keys"] = read_keys(values["api_keys"], values["api_key_file"])
    if not rank:
        _check_operators(values["operator_keys"], values["keys"])
    if values["prefix_sharing"] == "key" and not (values["keys"] or rank):
        raise SettingError(
            "PREFIX_SHARING='key': needs keys, in API_KEY or API_KEY_FILE; or must be all"
        )
    if values["prefix_warm"] and not values["prefix_cache_percent"]:
        raise SettingError("PREFIX_WARM: needs room; PREFIX_CACHE_PERCENT=0 must be 1 or more")
    return Settings(**values)


def bits_of(choice: str) -> int:
    """Of KV_BITS; 0: off."""
    return 0 if choice == "off" else int(choice)


def _check_operators(operators: tuple[str, ...], keys: Keys) -> None:
    """Names of keys; a place in the list would be somebody else's when the list changes."""
    names = {label for _, label in keys if not UNNAMED.fullmatch(label)}
    for name in operators:
        if name not in names:
            known = ", ".join(sorted(names)) or "none of them has one"
            raise SettingError(
                f"OPERATOR_KEYS={name!r}: must be names that keys of API_KEY_FILE have ({known})"
            )


def _folder(text: str, name: str = "MODEL_DIR") -> Path:
    """The model's, or SettingError."""
    setting = BY_NAME[name]
    if not text:
        raise SettingError(f"{setting.name} is not set: must be the folder of an MLX model")
    try:
        path = Path(str(parse(setting, text))).resolve()
        problem = "" if path.is_dir() else "no such folder"
    except (OSError, RuntimeError) as error:  # no permission, name too long, a loop of links
        problem = str(error)
    if problem:
        raise SettingError(
            f"{setting.name}={text!r}: must be the folder of an MLX model; {problem}"
        )
    return path


def _variables(text: str) -> dict[str, Any]:
    """Of the chat template, or SettingError."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise SettingError(f"CHAT_TEMPLATE_KWARGS={text!r}: must be a JSON object")
    for name in sorted(NOT_TEMPLATE_VARIABLES & found.keys()):
        raise SettingError(
            f"CHAT_TEMPLATE_KWARGS={text!r}: must be variables of the template; {name} is an"
            " argument of the rendering"
        )
    return found


def read_keys(given: tuple[str, ...], file: str | None) -> Keys:
    """From API_KEY and API_KEY_FILE (one a line), as the file is now. Raises SettingError.

    In the file a label may follow its key after a blank; without one a key is known by its place
    among all keys: "key 1", "key 2".
    """
    keys = [(key, "") for key in given]
    if file:
        try:
            if Path(file).exists() and not Path(file).is_file():
                raise OSError("it is a folder, a pipe or a device")  # a pipe would be waited for
            lines = [line.split(None, 1) for line in Path(file).read_text("utf-8").splitlines()]
            keys += [(key, "".join(label).strip()) for key, *label in filter(None, lines)]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(
                f"API_KEY_FILE={file!r}: must be a readable text file with one key a line: {error}"
            ) from None
        if not keys:
            # An empty file must not silently let everybody in.
            raise SettingError(f"API_KEY_FILE={file!r}: holds no key; must have one a line")
    return tuple((key, label or f"key {n}") for n, (key, label) in enumerate(keys, 1))
