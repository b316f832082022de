"""Settings of the server: read once from the environment at the entry, then passed down.

Every rank reads the same variables, but only the engine's limits matter on workers. No other
module reads the environment. A wrong value raises SettingError, which names the setting, the
value and what is allowed; the entry turns that into exit code 78.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

YEAR_S = 31_536_000


class SettingError(ValueError):
    """A setting has a value that is not allowed. The message names all three."""


@dataclass(frozen=True)
class Settings:
    """What the operator asked for. Times are in seconds, sizes in the unit of the name."""

    model_dir: Path
    model_id: str
    parallel: str  # "tensor" | "pipeline"
    http_host: str
    http_port: int
    queue_max: int  # requests waiting beyond the running ones
    max_batch: int  # requests decoded together
    default_max_tokens: int
    req_timeout: float
    drain_timeout: float
    stall_timeout: float
    load_timeout: float
    join_timeout: float  # for ranks to import what they need and to find each other
    prefill_step: int  # tokens of a full prefill chunk, as when nothing decodes
    prefill_pause_ms: float  # what a chunk may add to the step of those who decode
    context_max: int | None  # tokens; None: what the model's config says
    kv_budget_gb: float | None  # 10^9 bytes a rank; None: what is left after the weights
    prefix_cache_percent: int  # of the KV memory, for prefixes of answered prompts; 0: none
    canary_interval: float  # seconds of idleness between two canaries; 0: only at start
    api_keys: tuple[str, ...]
    api_key_labels: tuple[str, ...]  # for each key, what the request log calls it
    allowed_origins: tuple[str, ...]
    log_level: str
    log_dir: Path | None  # of the request log; None: none is kept
    log_max_mb: float  # 10^6 bytes; then the request log is turned; 0: never
    log_prompts: bool
    restarts: int  # told by the supervisor, shown in /health
    last_failure: str


def read_settings(env: Mapping[str, str], rank: int = 0) -> Settings:
    """Builds Settings from environment variables; unset or empty means the default.

    Keys are read on rank 0 alone: API_KEY_FILE need not exist elsewhere. Raises SettingError for
    a value that is not allowed.
    """
    model_dir = _directory(env, "MODEL_DIR")
    keys = _api_keys(env) if rank == 0 else ()
    return Settings(
        model_dir=model_dir,
        model_id=_text(env, "MODEL_ID") or model_dir.name,
        parallel=_choice(env, "PARALLEL", ("tensor", "pipeline")),
        http_host=_text(env, "HTTP_HOST") or "127.0.0.1",
        http_port=_integer(env, "HTTP_PORT", 8080, 1, 65535),
        queue_max=_integer(env, "QUEUE_MAX", 8, 0, 100_000),
        max_batch=_integer(env, "MAX_BATCH", 8, 1, 1024),
        default_max_tokens=_integer(env, "DEFAULT_MAX_TOKENS", 2048, 1, 10_000_000),
        req_timeout=_seconds(env, "REQ_TIMEOUT", 600),
        drain_timeout=_seconds(env, "DRAIN_TIMEOUT", 30, least=0),
        stall_timeout=_seconds(env, "STALL_TIMEOUT", 60),
        load_timeout=_seconds(env, "LOAD_TIMEOUT", 900),
        join_timeout=_seconds(env, "JOIN_TIMEOUT", 120),
        prefill_step=_integer(env, "PREFILL_STEP", 512, 16, 65_536),
        prefill_pause_ms=_decimal(env, "PREFILL_PAUSE_MS", 250, 1, 60_000, "milliseconds"),
        context_max=_integer(env, "CONTEXT_MAX", 0, 0, 100_000_000) or None,
        kv_budget_gb=_decimal(env, "KV_BUDGET_GB", 0, 0, 100_000, "GB") or None,
        prefix_cache_percent=_integer(env, "PREFIX_CACHE_PERCENT", 50, 0, 90),
        canary_interval=_seconds(env, "CANARY_INTERVAL", 0, least=0),
        api_keys=tuple(key for key, _ in keys),
        api_key_labels=tuple(label for _, label in keys),
        allowed_origins=tuple(_text(env, "ALLOWED_ORIGINS").replace(",", " ").split()),
        log_level=_choice(env, "LOG_LEVEL", ("INFO", "DEBUG", "WARNING", "ERROR")),
        log_dir=Path(_text(env, "LOG_DIR")) if _text(env, "LOG_DIR") else None,
        log_max_mb=_decimal(env, "LOG_MAX_MB", 100, 0, 1_000_000, "MB"),
        log_prompts=_choice(env, "LOG_PROMPTS", ("0", "1")) == "1",
        restarts=_integer(env, "SUPERVISOR_RESTARTS", 0, 0, 10**9),
        last_failure=_text(env, "SUPERVISOR_LAST_FAILURE"),
    )


def _text(env: Mapping[str, str], name: str) -> str:
    return env.get(name, "").strip()


def _integer(env: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = _text(env, name)
    if not text:
        return default
    try:
        value = int(text) if text.isascii() and "_" not in text else least - 1
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise SettingError(f"{name}={text!r}: must be a whole number from {least} to {most}")
    return value


def _decimal(
    env: Mapping[str, str], name: str, default: float, least: float, most: float, unit: str
) -> float:
    text = _text(env, name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:  # also refuses nan
        raise SettingError(f"{name}={text!r}: must be {unit} from {least:g} to {most:g}")
    return value


def _seconds(env: Mapping[str, str], name: str, default: float, least: float = 0.1) -> float:
    return _decimal(env, name, default, least, YEAR_S, "seconds")


def _choice(env: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    text = _text(env, name)
    if not text:
        return allowed[0]
    if text not in allowed:
        raise SettingError(f"{name}={text!r}: must be one of {', '.join(allowed)}")
    return text


def _directory(env: Mapping[str, str], name: str) -> Path:
    text = _text(env, name)
    if not text:
        raise SettingError(f"{name} is not set: must be the folder of an MLX model")
    try:
        path = Path(text).expanduser().resolve()
        problem = "" if path.is_dir() else "no such folder"
    except (OSError, RuntimeError) as error:  # no permission, name too long, no such ~user
        problem = str(error)
    if problem:
        raise SettingError(f"{name}={text!r}: must be the folder of an MLX model; {problem}")
    return path


def _api_keys(env: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Keys and their labels, from API_KEY (separated by commas) and API_KEY_FILE (one a line).

    In the file a label may follow its key after a blank; without one a key is known by its place
    among all keys: "key 1", "key 2".
    """
    text = _text(env, "API_KEY")
    keys = [(key.strip(), "") for key in text.split(",") if key.strip()]
    if text and not keys:
        # As with an empty file below. The value is not shown: settings are logged.
        raise SettingError("API_KEY holds no key; must be one or more, separated by commas")
    file = _text(env, "API_KEY_FILE")
    if file:
        try:
            lines = [line.split(None, 1) for line in Path(file).read_text("utf-8").splitlines()]
            keys += [(key, "".join(label).strip()) for key, *label in filter(None, lines)]
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(
                f"API_KEY_FILE={file!r}: must be a readable text file with one key a line: {error}"
            ) from None
        if not keys:
            # An empty file must not silently open the door.
            raise SettingError(f"API_KEY_FILE={file!r}: holds no key; must have one a line")
    return tuple((key, label or f"key {n}") for n, (key, label) in enumerate(keys, 1))
