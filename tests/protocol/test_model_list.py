"""Which models are served: MODEL_DIR's, those of MODELS, and what is below MODELS_DIR."""

import pytest

from server.protocol.setting import SettingError
from server.protocol.settings import read_settings


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


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"MODELS": "x={none}"}, "must lead to a folder; no such folder"),
        ({"MODELS": "x={a},x={b}"}, "must have another name; 'x' is taken"),
        ({"MODELS": "{a}"}, "must be NAME=/FOLDER"),
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
