"""What the doctor says of several models, from what each host tells of its list."""

import copy

import pytest

from scripts.lib.doctor.cluster import Cluster
from scripts.lib.doctor.facts import HostFacts
from scripts.lib.doctor.findings import FAIL, PASS, SKIP, WARN
from scripts.lib.doctor.judge_models import models
from scripts.lib.doctor.plan import Plan

GB = 10**9
HOSTS = ("mac0", "mac1", "mac2")


def model(name, gigabytes, peak=1, **more):
    share = int(gigabytes * GB / len(HOSTS))
    return {
        "name": name,
        "folder": f"/models/{name}",
        "reasons": [],
        "files": {"config.json": "1", "model.safetensors": "2"},
        "weights": [share] * len(HOSTS),
        "peak": int(peak * GB),
    } | more


LIST = {"models": [model("large", 300), model("small", 6), model("other", 60)], "others": []}


def judge(change=lambda told: None, memory=128, pinned="", models_gb=None, **listed):
    """By host. change: of what they tell, a list a host."""
    told = [copy.deepcopy(LIST) for _ in HOSTS]
    change(told)
    plan = Plan(
        ranks=HOSTS,
        asked=HOSTS,
        checks=frozenset({"models"}),
        backend="ring",
        local=False,
        checkout="/c",
        python="/c/python",
        http_port=1,
        cluster_ports=((),) * 3,
        listed=("", "", "large=/models/large", "/models", pinned),
        models_gb=models_gb,
    )
    facts = {
        host: HostFacts(host, system="Linux", memory=memory * GB, models=one)
        for host, one in zip(HOSTS, told, strict=True)
    }
    return {finding.host: finding for finding in models(Cluster(plan, facts))}


def test_a_list_that_is_the_same_and_fits_is_well_and_folders_that_are_no_models_are_named():
    def change(told):
        for one in told:
            one["others"] = [["/models/notes", "there is no model in it"]]

    for finding in judge(change).values():
        assert finding.verdict == PASS
        assert finding.found.endswith("; no models: /models/notes: there is no model in it")


def test_what_is_half_a_model_is_a_warning_with_what_mends_it():
    def change(told):
        told[1]["others"] = [["/models/new.partial", "it is an unfinished copy"]]

    found = judge(change)
    assert [finding.verdict for finding in found.values()] == [PASS, WARN, PASS]
    assert found["mac1"].found == "/models/new.partial: it is an unfinished copy"


def lacks(told):
    del told[1]["models"][1]


def elsewhere(told):
    told[1]["models"][2]["folder"] = "/disk/other"


def content(told):
    told[1]["models"][1]["files"]["config.json"] = "another"


def unreadable(told):
    told[1]["models"][1].update(reasons=["config.json is missing"])
    del told[1]["models"][1]["files"]


def wrong(told):
    told[1] = {"models": [], "others": [], "error": "MODELS='small=/models/small': must lead"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lacks, "it lacks small"),
        (elsewhere, "it lacks other"),
        (content, "small: config.json is not what the others have"),
        (unreadable, "small: config.json, model.safetensors is not what the others have"),
        (wrong, "MODELS='small=/models/small': must lead"),
    ],
)
def test_a_host_that_differs_is_the_one_that_is_mended(change, says):
    found = judge(change)
    assert [finding.verdict for finding in found.values()] == [PASS, FAIL, PASS]
    assert says in found["mac1"].found
    assert (
        found["mac1"].fix.command == "scripts/sync_model.sh --all mac1" and found["mac1"].fix.here
    )


def test_what_a_host_has_alone_is_named_and_no_failure_as_rank_0_tells_the_list():
    def change(told):
        told[1]["models"].insert(0, model("mine", 1))

    found = judge(change)
    assert {finding.verdict for finding in found.values()} == {PASS}
    assert found["mac1"].found.endswith("not served, as rank 0 has it not: mine")
    # What rank 0 alone has is what the others lack.
    found = judge(lambda told: told[0]["models"].append(model("new", 1)))
    assert [finding.verdict for finding in found.values()] == [PASS, FAIL, FAIL]


def test_a_model_that_no_host_can_serve_is_a_warning_as_the_others_are_served():
    def change(told):
        for one in told:
            one["models"][2].update(reasons=["model_type is 'x', which nobody knows"])
            del one["models"][2]["files"], one["models"][2]["weights"]

    for finding in judge(change).values():
        assert finding.verdict == WARN and "other: model_type is 'x'" in finding.found


def test_memory_is_what_is_pinned_and_one_more_and_the_peak_of_its_loading():
    assert {f.verdict for f in judge(memory=103, pinned="small").values()} == {PASS}
    found = judge(memory=102, pinned="small")["mac0"]  # 100 + 2, and 1 at the peak
    assert found.verdict == WARN
    assert found.found.startswith("large takes 100 GB beside small (PINNED, 2.0 GB)")
    assert {f.verdict for f in judge(memory=102).values()} == {PASS}
    assert judge(memory=128, models_gb=50)["mac0"].found.startswith("large takes 100 GB, and")
    both = judge(memory=110, pinned="large,other")["mac0"]
    assert both.verdict == FAIL
    assert both.found.startswith("large and other (PINNED) take 120 GB of 110 GB")


def test_a_host_that_could_not_be_asked_is_not_judged():
    def change(told):
        told[2] = None

    assert judge(change)["mac2"].verdict == SKIP
