"""A model that is loaded while others decode: in pieces none of which is more than a short chunk of
prompts, and what rank 0 alone fails at is the model's failure, not the server's."""

import mlx.core as mx
import pytest
from mlx_lm.models import llama

from server import rank, ready
from server.protocol.events import Failed
from server.residents import Residents
from tests.support.house import House
from tests.support.launch_helpers import wait_until

CHUNK = 64  # tokens
SCRIPT_MOST = 100  # of a turn of the proof of batches: three prompts' chunks of 32, and rows


class Steady:
    """A pace that stays."""

    def __init__(self, pause_s: float, most: int) -> None:
        self.tokens = CHUNK

    def observe(self, computed: int, chunk_s: float, step_s: float) -> None:
        pass


def test_no_piece_computes_more_than_those_who_decode_can_bear(tmp_path, monkeypatch):
    """The proof of batches was one piece, and the canary began with a full chunk."""
    pieces, tokens = [], [0]
    call, advance = llama.Model.__call__, Residents.advance

    def counting(self, inputs, *arguments, **named):
        tokens[0] += inputs.size
        return call(self, inputs, *arguments, **named)

    def noting(self):
        before, decoding = tokens[0], self.decoding
        failed = advance(self)
        pieces.append((decoding, tokens[0] - before))
        return failed

    monkeypatch.setattr(llama.Model, "__call__", counting)
    monkeypatch.setattr(Residents, "advance", noting)
    monkeypatch.setattr(ready, "PrefillPace", Steady)

    def act(house: House) -> None:
        running = house.begin("a", tokens=450)
        house.ask("b")
        assert len(house.end(running)) == 450

    disk = {"PREFIX_DISK_GB": "0.1", "PREFIX_DISK_DIR": str(tmp_path / "disk")}
    # What drafts would cost is measured by the time that passes take, however many tokens they are.
    House(tmp_path, PREFILL_STEP="256", SPECULATE="off", **disk).run(act)
    beside = [count for decoding, count in pieces if decoding]
    assert sum(beside) > 256, "the canary was computed beside them"
    assert max(beside) <= SCRIPT_MOST
    assert len([count for count in beside if count]) > 20


def test_a_template_that_cannot_be_read_is_the_models_failure(tmp_path, monkeypatch):
    """Rank 0 alone looks at it, when all ranks have the model."""
    right, tell_formats = [], rank.tell_formats

    def fail(tokenizer):
        raise RuntimeError("no sense in this template")

    def act(house: House) -> None:
        right.append(house.ask("a"))
        used = mx.get_active_memory()
        monkeypatch.setattr(rank, "tell_formats", fail)
        refused = house.ask("b")
        assert isinstance(refused, Failed) and "no sense in this" in refused.error.message
        # The server goes on while we look.
        wait_until(lambda: mx.get_active_memory() < used + 2**16, "memory of what was loaded")
        monkeypatch.setattr(rank, "tell_formats", tell_formats)
        assert house.ask("a") == right[0] and len(house.ask("c")) == 6

    House(tmp_path).run(act)


@pytest.mark.parametrize("error", [TypeError("a config of no use"), ZeroDivisionError("no heads")])
def test_what_all_ranks_meet_in_a_model_is_that_models_failure(tmp_path, monkeypatch, error):
    """It used to end the server, and again whenever the model was asked for."""
    need_of = ready.need_of

    def act(house: House) -> None:
        def fail(shard, ranks):
            raise error

        monkeypatch.setattr(ready, "need_of", fail)
        refused = house.ask("b")
        monkeypatch.setattr(ready, "need_of", need_of)
        assert isinstance(refused, Failed) and str(error) in refused.error.message
        assert len(house.ask("a")) == 6

    House(tmp_path).run(act)
