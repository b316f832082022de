"""One of the models that are served, as the metrics show it."""

from dataclasses import dataclass

from server.observe.views import Load


@dataclass(frozen=True)
class ModelView:
    """One of the models that are served. unloads: how often it left, by reason; load_s: seconds of
    its last load; kv_tokens: that the ranks would have room for if it alone had requests;
    token_bytes: what one takes on rank 0; load: its own."""

    name: str
    loaded: bool
    bytes: int
    loads: int
    failures: int
    unloads: tuple[tuple[str, int], ...]
    load_s: float
    kv_tokens: int
    token_bytes: int
    load: Load
