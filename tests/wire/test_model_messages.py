"""Messages about models, as bytes."""

from server.wire.messages import Evict, Load, To, Unload, decode, encode


def test_models_are_named_by_their_place():
    messages = [To(2), Evict((3,)), To(0), Unload(2), Load(1)]
    assert decode(encode(messages)) == messages
