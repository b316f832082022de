"""Which models are served: MODEL_DIR's, those of MODELS, and what is below MODELS_DIR."""

import pytest

from server.protocol.model_list import look_below
from server.protocol.setting import SettingError, plain
from server.protocol.settings import read_settings
from server.protocol.settings_table import BY_NAME


def folder(path, model=True):
    path.mkdir(parents=True)
    if model:
        (path / "config.json").write_text("{}")
        (path / "model.safetensors").write_bytes(b"")
    return path


def names(**env):
    return [one.name for one in read_settings({n: str(v) for n, v in env.items()}).models]


def test_one_folder_is_one_model(tmp_path):
    one = folder(tmp_path / "one", model=False)
    settings = read_settings({"MODEL_DIR": str(one)})
    assert [(m.name, m.folder) for m in settings.models] == [("one", one)]
    assert names(MODEL_DIR=one, MODEL_ID="x") == ["x"]


def test_models_come_behind_the_first_in_their_order(tmp_path):
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b")
    assert names(MODEL_DIR=a, MODELS=f"small={b}, again={a}") == ["a", "small", "again"]
    settings = read_settings({"MODELS": f"small={b} large={a}"})
    assert (settings.model_id, settings.model_dir) == ("small", b)


def test_the_first_may_be_named_by_model_dir_as_the_scripts_do(tmp_path):
    a, b, top = folder(tmp_path / "a"), folder(tmp_path / "b"), tmp_path / "top"
    folder(top / "OWNER/C")
    all_of_them = {"MODELS": f"x={a},y={b}", "MODELS_DIR": top}
    for env in (all_of_them, {"MODELS": f"x={a}"}, {"MODELS_DIR": top}):
        told = read_settings({name: str(value) for name, value in env.items()})
        first = {"MODEL_DIR": told.model_dir, "MODEL_ID": told.model_id}
        assert names(**env, **first) == [one.name for one in told.models]


def test_every_folder_below_that_is_a_model_is_one(tmp_path):
    top = tmp_path / "top"
    for name in ("OWNER/B", "OWNER/A", "C", ".hidden/D", "too/far/down/E"):
        folder(top / name)
    folder(top / "none", model=False)
    folder(top / "C" / "within")
    assert names(MODELS_DIR=top) == ["C", "OWNER/A", "OWNER/B"]
    assert names(MODELS_DIR=top, MODEL_DIR=top / "OWNER/B") == ["B", "C", "OWNER/A"]


def test_a_path_may_hold_blanks_commas_and_signs_of_equality(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    odd = ("My Models, all", "Größe=4,b", "a b=c", "~x", "lr=1 e=2")
    folders = [folder(tmp_path / name) for name in odd]
    for between in (",", " ", ", ", "\n", " , "):
        text = between.join(f"m{n}={path}" for n, path in enumerate(folders))
        assert [m.folder for m in read_settings({"MODELS": text + between}).models] == folders
    for setting in ("MODELS", "MODELS_DIR"):
        below = "x=~/top" if setting == "MODELS" else "~/top"
        folder(tmp_path / "top" / setting)
        assert str(tmp_path) in plain(BY_NAME[setting], below)


def test_what_is_no_model_below_is_told_with_its_reason(tmp_path):
    top = folder(tmp_path / "top", model=False)
    folder(top / "OWNER" / "good")
    for name in ("OWNER/half.partial", "far/down/below/x", ".cache/y"):
        folder(top / name)
    for name in ("none", "OWNER/config-only", "weights-only"):
        folder(top / name, model=False)
    (top / "OWNER/config-only/config.json").write_text("{}")
    (top / "weights-only/model.safetensors").write_bytes(b"")
    adapter = folder(top / "adapter", model=False)
    (adapter / "config.json").write_text("{}")
    (adapter / "adapters.safetensors").write_bytes(b"")
    below = look_below(top)
    assert [one.name for one in below.models] == ["OWNER/good"]
    assert {path.relative_to(top).as_posix(): why for path, why in below.others} == {
        "OWNER/half.partial": "it is an unfinished copy",
        "OWNER/config-only": "it has no model*.safetensors",
        "adapter": "it has no model*.safetensors",
        "far": "there is no model in it",
        "none": "there is no model in it",
        "weights-only": "it has no config.json",
    }


def test_links_lead_to_models_and_never_in_circles(tmp_path):
    """Folders are named as they are told: where a link leads may differ between hosts."""
    top, elsewhere = folder(tmp_path / "top", model=False), folder(tmp_path / "disk 2" / "Foo-v2")
    folder(top / "zeta")
    for name, to in (("Foo", elsewhere), ("also", top / "zeta"), ("circle", top), ("off", "gone")):
        (top / name).symlink_to(to)
    found = read_settings({"MODELS_DIR": str(top)}).models
    assert [(one.name, one.folder) for one in found] == [
        ("Foo", top / "Foo"),
        ("zeta", top / "zeta"),
    ]
    (tmp_path / "link").symlink_to(top)
    assert names(MODELS_DIR=tmp_path / "link") == ["Foo", "zeta"]
    assert names(MODELS=f"f={elsewhere}", MODELS_DIR=top) == ["f", "zeta"]


def test_the_hubs_cache_has_the_names_of_repos(tmp_path):
    top = tmp_path / "hub"
    for repo, versions in (("A--one", "x"), ("A--two--b", "xy"), ("A--unclear", "xy")):
        for version in versions:
            place = folder(top / f"models--{repo}" / "snapshots" / version)
            blob = place.parents[1] / "blobs" / f"config-{version}"
            blob.parent.mkdir(exist_ok=True)
            (place / "config.json").replace(blob)
            (place / "config.json").symlink_to(blob)
    main = top / "models--A--two--b" / "refs" / "main"
    main.parent.mkdir()
    main.write_text("y")
    (top / ".locks").mkdir()
    found = read_settings({"MODELS_DIR": str(top)}).models
    assert {one.name: one.folder.name for one in found} == {"A/one": "x", "A/two--b": "y"}


def test_two_hundred_folders_are_two_hundred_models(tmp_path):
    for n in range(200):
        folder(tmp_path / "top" / f"m{n:03}")
    assert len(names(MODELS_DIR=tmp_path / "top")) == 200
    for n in range(200, 257):
        folder(tmp_path / "top" / f"m{n:03}")
    with pytest.raises(SettingError, match="257 models: must be 256 at most"):
        names(MODELS_DIR=tmp_path / "top")


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"MODELS": "x={none}"}, "must lead to a folder; no such folder"),
        ({"MODELS": "x={a},x={b}"}, "must have another name; 'x' is taken"),
        ({"MODELS": "{a}"}, "must be NAME=/FOLDER"),
        ({"MODELS": "x=b"}, "must be NAME=/FOLDER"),
        ({"MODELS": "x={a},y=b"}, "no such folder; each of the list must be NAME=/FOLDER"),
        ({"MODELS": "x=~nobody-has-this-name/b"}, "must lead to a folder"),
        ({"MODELS": "x=/a\nb"}, "must be NAME=/FOLDER"),
        ({"MODELS_DIR": "{a}"}, "it is one: set MODEL_DIR"),
        ({"MODELS_DIR": "{empty}"}, "must have models below it"),
        ({"MODELS": "x={a}", "PINNED": "y"}, "PINNED='y': must be of the models: x"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(tmp_path, env, says):
    places = {name: folder(tmp_path / name) for name in ("a", "b")}
    places |= {"none": tmp_path / "none", "empty": folder(tmp_path / "empty", model=False)}
    env = {name: text.format(**places) for name, text in env.items()}
    with pytest.raises(SettingError, match="must") as caught:
        read_settings(env)
    assert says in str(caught.value)
