"""Everything that a request may ask for, mixed in one batch, with drafts: each gets what it gets
without, on two ranks and on four, and the ranks stay in step."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.sampling.test_lockstep import REQUESTS, ask, assert_same
from tests.support import sweeps
from tests.support.cluster import Cluster
from tests.support.paths import FAULT_SITE
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.ranks

FEW = ["greedy", "bias", "four choices", "schema", "forced call"]


def serve(folder, model, ranks: int, **settings) -> Cluster:
    settings = {"QUEUE_MAX": 64, "MAX_BATCH": 6, "PREFILL_STEP": 64} | settings
    one = Cluster(ranks, model, folder / settings["SPECULATE"], settings)
    one.wait_ready()
    return one


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.thorough)])
def test_all_kinds_of_requests_get_with_drafts_what_they_get_without(ranks, tmp_path):
    # Four ranks on two cores take long for all of them.
    names = list(REQUESTS) if ranks == 2 and sweeps.whole else FEW
    model = tiny_llama(tmp_path / "tiny", context=4096)
    (tmp_path / "eager-0").touch()
    off = serve(tmp_path, model, ranks, SPECULATE="off")
    try:
        alone = {name: ask(off, name) for name in names}
        assert off.get("/cluster")[1]["drafts"]["drafted"] == 0
    finally:
        off.end()
    faults = {"PYTHONPATH": FAULT_SITE, "FAULT_DIR": tmp_path}
    on = serve(tmp_path, model, ranks, SPECULATE="auto", **faults)
    try:
        pids = on.pids()
        for name in names:
            assert_same(ask(on, name), alone[name], name)
        drafts = on.get("/cluster")[1]["drafts"]
        assert drafts["on"] == "of any row", drafts
        assert drafts["right"] > (5 if names is FEW else 20), drafts
        with ThreadPoolExecutor(len(names)) as pool:
            leavers = [on.open_stream(max_tokens=2000, ignore_eos=True) for _ in range(3)]
            together = {name: pool.submit(ask, on, name) for name in names}
            for leaver in leavers:
                leaver.close()
            for name, future in together.items():
                assert_same(future.result(), alone[name], name)
        on.wait_idle()
        assert on.pids() == pids
        assert on.get("/health")[1]["kv_tokens"]["used"] == 0
    finally:
        on.end()
