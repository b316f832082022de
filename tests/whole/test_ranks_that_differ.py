"""Ranks that do not belong together, by settings, model or run: named, and not started again."""

import json
import os
import subprocess
import sys

import pytest

from server.protocol.exit_codes import CONFIG, NOT_JOINED
from tests.support.cluster import engine_environment
from tests.support.faults import (
    CONTEXT,
    ROOT,
)
from tests.support.ports import free_port
from tests.support.tiny_models import tiny_llama

pytestmark = pytest.mark.ranks


def run_two_ranks_by_hand(
    tmp_path, model_dirs, steps, run_ids=("", "")
) -> tuple[list[int], list[str]]:
    """Exit codes and output of two ranks without a launcher, each with settings of its own."""
    first = free_port(3)
    hostfile = tmp_path / "hosts.json"
    hostfile.write_text(json.dumps([[f"127.0.0.1:{first + 1}"], [f"127.0.0.1:{first + 2}"]]))
    ranks = []
    for rank in (0, 1):
        env = os.environ | engine_environment() | {
            "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hostfile), "HTTP_PORT": str(first),
            "MODEL_DIR": str(model_dirs[rank]), "PREFILL_STEP": str(steps[rank]),
            "LOAD_TIMEOUT": "60",
        }  # fmt: skip
        ranks.append(
            subprocess.Popen(
                [
                    sys.executable,
                    ROOT / "server/openai_cluster_server.py",
                    "--run-id",
                    run_ids[rank],
                ],
                env=env,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )  # fmt: skip
        )
    try:
        output = [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], output


def test_a_rank_with_another_setting_is_named_with_both_values(tmp_path, tiny_model):
    codes, output = run_two_ranks_by_hand(tmp_path, [tiny_model] * 2, [128, 256])
    assert codes == [CONFIG, CONFIG], output
    for text in output:
        last = text.splitlines()[-1]
        assert "the ranks differ: rank 1 (" in last
        assert "has PREFILL_STEP = 256, rank 0 (" in last and last.endswith("has 128")


def test_a_rank_with_other_model_files_is_named_with_both_fingerprints(tmp_path, tiny_model):
    other = tiny_llama(tmp_path / "tiny", context=CONTEXT, hidden=128)
    codes, output = run_two_ranks_by_hand(tmp_path, [tiny_model, other], [128, 128])
    assert codes == [CONFIG, CONFIG], output
    for text in output:
        last = text.splitlines()[-1]
        assert "rank 1 (" in last and "has model file config.json = " in last
        assert "has model file model.safetensors = " in last and " bytes, header " in last


def test_ranks_of_two_servers_that_meet_at_one_port_part_again(tmp_path, tiny_model):
    """Alike in all else, they would have served each other's requests. Not code 78: another start
    may find its own."""
    runs = ("run-one", "run-two")
    codes, output = run_two_ranks_by_hand(tmp_path, [tiny_model] * 2, [128, 128], runs)
    assert codes == [NOT_JOINED, NOT_JOINED], output
    for text in output:
        assert (
            "what joined is not this run's ranks alone: another server's" in text.splitlines()[-1]
        )


def test_ranks_that_differ_are_not_started_again(server):
    one = server()
    (one.fault_dir / "env-1").write_text("PREFILL_STEP=256\n")
    assert one.start() == 1
    assert "has PREFILL_STEP = 256, rank 0 (" in one.output
    assert "supervisor: over: starting again cannot help" in one.output
    assert one.log().count("started launcher") == 1
    assert not one.left()
