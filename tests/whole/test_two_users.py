"""A cluster of two Macs whose owners have other names: from a checkout to an answer, and its end.

Everything is done by anna at her Mac, as she would; nothing of hers can be read by bjorn.
"""

import json
from pathlib import Path

import pytest

from tests.support.two_users import two_users
from tests.support.user_desk import Desk, ask

pytestmark = pytest.mark.ranks

HARD_NAME = 'Jörg\'s "mlx" cluster (2)'


@pytest.fixture
def macs():
    with two_users() as both:
        yield both


@pytest.mark.thorough
def test_users_of_other_names_make_a_cluster_in_a_folder_that_all_macs_have(macs):
    desk = Desk(macs, macs.shared / HARD_NAME)
    desk.make_venv()
    desk.write_hostfile()
    assert "fail" not in desk.run("sync_nodes.sh")
    desk.run("sync_model.sh", desk.env["MODEL_DIR"])
    assert "\n0 failed, " in desk.run("verify_cluster.sh", "--smoke")
    for name in macs.names:
        assert name in desk.run("check_model.sh", desk.env["MODEL_DIR"])
    desk.run("run_openai_cluster_server.sh", "--detach", "--no-restart")
    assert ask(desk.port)
    told = json.loads(desk.run("status.sh", "--json").splitlines()[-1])["servers"][0]
    assert [(rank["host"], rank["state"]) for rank in told["ranks"]] == [
        (name, "ok") for name in macs.names
    ]
    record = desk.root / "run" / str(desk.port) / "rank-1.pid"
    assert macs.view(1, record).exists() and not macs.view(0, record).exists()
    assert f"rank 1 ({macs.names[1]})" in desk.run("logs.sh")
    desk.run("stop_openai_cluster_server.sh")
    assert not macs.view(1, record).exists()


def test_a_folder_that_is_one_user_s_own_is_refused_with_both_ways_out(macs):
    """rsync's own word was taken for a broken connection, to be tried again."""
    home = macs.people / macs.users[0]
    desk = Desk(macs, home / "mlx-cluster")
    desk.make_venv()
    desk.write_hostfile()
    said = desk.run("sync_nodes.sh", expect=1)
    user = macs.users[1]
    assert f"fail  {macs.names[1]}  {user} may not write in {macs.people}, so {desk.root}" in said
    assert f"sudo mkdir -p {desk.root} && sudo chown {user} {desk.root}" in said
    assert f"ok    {macs.names[0]}" in said and "/Users/Shared" in said
    said = desk.run("sync_model.sh", desk.env["MODEL_DIR"], expect=1)
    assert f"{user} may not write in {macs.people}, so {desk.env['MODEL_DIR']}" in said

    # As its administrator would.
    macs.view(1, desk.root).mkdir(parents=True)
    macs.give(1, desk.root)
    desk.run("sync_nodes.sh")
    desk.run("sync_model.sh", desk.env["MODEL_DIR"])
    assert (macs.view(1, Path(desk.env["MODEL_DIR"])) / "config.json").exists()


@pytest.mark.thorough
def test_one_command_leads_from_nothing_to_an_answer_and_then_has_nothing_to_do(macs):
    desk = Desk(macs, macs.shared / HARD_NAME)
    desk.make_venv()
    said = desk.run("setup_cluster.sh", "--yes", *macs.names)
    assert "] addresses: not needed here" in said and "] answer: holds: 'The capital" in said
    assert ask(desk.port)
    said = desk.run("setup_cluster.sh", "--yes", "--skip", "doctor", "--skip", "verify")
    for step in ("hostfile", "sync", "model", "benchmark", "serve", "answer"):
        assert f"] {step}: holds" in said
    # A rank that is gone, and code that has changed, are seen.
    desk.run("stop_openai_cluster_server.sh")
    (macs.view(1, desk.root) / "server" / "loop.py").write_text("")
    said = desk.run("setup_cluster.sh", "--yes", "--from", "sync", "--skip", "verify")
    assert f"{macs.names[1]}: server/loop.py is not the same" in said
    assert "] model: holds" in said and "] answer: holds" in said
    desk.run("stop_openai_cluster_server.sh")
