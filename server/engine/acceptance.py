"""What a request has to be for the engine to take it in. On the main thread of every rank."""

from collections.abc import Set

from server.engine.prefix_store import PrefixStore
from server.protocol.failures import Refused
from server.wire.messages import Submit


def check(message: Submit, at_work: Set[int], prefixes: PrefixStore) -> None:
    """Raises Refused for what cannot be begun, or would end in the midst of a step. at_work: the
    uids that the engine has."""
    uids = (message.uid, *message.forks)
    if len(set(uids)) < len(uids) or at_work & set(uids):
        raise Refused(f"requests {uids} are at work already")
    if not message.prompt:
        raise Refused("the prompt is empty")
    if message.max_tokens < 1:
        raise Refused(f"max_tokens is {message.max_tokens}: at least 1")
    if any(not 0 < at <= len(message.prompt) for at, _ in message.keep):
        raise Refused(f"{len(message.prompt)} tokens cannot be kept at {message.keep}")
    if message.reuse and not message.score:
        entry, length = message.reuse
        if length >= len(message.prompt):
            raise Refused(f"of a prompt of {len(message.prompt)} tokens {length} are kept")
        prefixes.check(entry, length)
