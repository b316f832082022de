"""Settings from the environment: defaults, and errors that name the setting and its value."""

import os

import pytest

from server.protocol.settings import SettingError, read_settings


@pytest.fixture
def env(tmp_path):
    folder = tmp_path / "a-model"
    folder.mkdir()
    return {"MODEL_DIR": str(folder)}


def test_a_model_folder_is_all_that_is_needed(env, tmp_path):
    settings = read_settings(env)
    assert settings.model_dir == (tmp_path / "a-model").resolve()
    assert settings.model_id == "a-model"
    assert (settings.parallel, settings.http_host, settings.http_port) == (
        "auto", "127.0.0.1", 8080,
    )  # fmt: skip
    assert (settings.queue_max, settings.max_batch, settings.default_max_tokens) == (8, 8, None)
    assert (settings.req_timeout, settings.drain_timeout) == (600, 30)
    assert settings.req_total_timeout is None
    assert (settings.stall_timeout, settings.load_timeout) == (60, 900)
    assert settings.join_timeout == 120
    assert (settings.keys, settings.allowed_origins, settings.context_max) == ((), (), None)


def test_empty_means_default(env):
    empty = dict.fromkeys(
        ["MODEL_ID", "HTTP_PORT", "QUEUE_MAX", "REQ_TIMEOUT", "PARALLEL", "API_KEY", "LOG_LEVEL"],
        " ",
    )
    assert read_settings(env | empty) == read_settings(env)


@pytest.mark.parametrize(
    ("name", "text", "attribute", "value"),
    [
        ("MODEL_ID", "org/name", "model_id", "org/name"),
        ("HTTP_PORT", "65535", "http_port", 65535),
        ("HTTP_HOST", "::", "http_host", "::"),
        ("QUEUE_MAX", "0", "queue_max", 0),
        ("MAX_BATCH", " 32 ", "max_batch", 32),
        ("DEFAULT_MAX_TOKENS", "1", "default_max_tokens", 1),
        ("REQ_TIMEOUT", "0.5", "req_timeout", 0.5),
        ("MODEL_ALIASES", "gpt-5, org/x:1[1m]", "model_aliases", ("gpt-5", "org/x:1[1m]")),
        ("MODEL_ALIASES", "*", "model_aliases", ("*",)),
        ("CHAT_TEMPLATE_KWARGS", '{"a": false}', "chat_template_kwargs", {"a": False}),
        ("CHAT_TEMPLATE_KWARGS", "", "chat_template_kwargs", {}),
        ("REQ_TOTAL_TIMEOUT", "900", "req_total_timeout", 900),
        ("REQ_TOTAL_TIMEOUT", "0", "req_total_timeout", None),
        ("DRAIN_TIMEOUT", "0", "drain_timeout", 0),
        ("STALL_TIMEOUT", "1e3", "stall_timeout", 1000),
        ("PARALLEL", "pipeline", "parallel", "pipeline"),
        ("CONTEXT_MAX", "4096", "context_max", 4096),
        ("LOG_LEVEL", "DEBUG", "log_level", "DEBUG"),
        ("API_KEY", "one, two,", "api_keys", ("one", "two")),
        ("ALLOWED_ORIGINS", "http://a, http://b", "allowed_origins", ("http://a", "http://b")),
        ("SUPERVISOR_RESTARTS", "3", "restarts", 3),
        ("SUPERVISOR_STARTS_AGAIN", "1", "supervised", 1),
        ("SUPERVISOR_LAST_FAILURE", "rank 1: code 75", "last_failure", "rank 1: code 75"),
    ],
)
def test_settings_are_read(env, name, text, attribute, value):
    assert getattr(read_settings(env | {name: text}), attribute) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[("HTTP_PORT", text) for text in ("0", "65536", "-1", "80.5", "http", "8_080", "٨٠٨٠")],
        *[("QUEUE_MAX", text) for text in ("-1", "none", "1e3", "9" * 5000)],
        *[("MAX_BATCH", text) for text in ("0", "1025", "true")],
        *[("MODEL_ALIASES", text) for text in ("gpt-*", "b*", "x" * 300)],
        *[("CHAT_TEMPLATE_KWARGS", text) for text in ("5", "{a}", "[]", '{"tools": []}')],
        *[("DEFAULT_MAX_TOKENS", text) for text in ("many", "-5")],
        *[("REQ_TIMEOUT", text) for text in ("0", "-1", "nan", "inf", "1e99", "10s")],
        *[("DRAIN_TIMEOUT", text) for text in ("-0.1", "nan")],
        *[("STALL_TIMEOUT", text) for text in ("0", "soon")],
        *[("LOAD_TIMEOUT", text) for text in ("0", "soon")],
        *[("JOIN_TIMEOUT", text) for text in ("0", "nan")],
        ("PARALLEL", "both"),
        ("PARALLEL", "Tensor"),
        ("LOG_LEVEL", "LOUD"),
        ("PREFILL_STEP", "1"),
        ("PREFILL_PAUSE_MS", "0.5"),
        ("PREFIX_CACHE_PERCENT", "91"),
        ("PREFIX_SHARING", "none"),
        ("PREFIX_WARM_WHEN", "never"),
        ("CONTEXT_MAX", "-1"),
        ("SUPERVISOR_RESTARTS", "-1"),
    ],
)
def test_wrong_value_is_named_with_its_setting_and_what_is_allowed(env, name, text):
    with pytest.raises(SettingError) as caught:
        read_settings(env | {name: text})
    message = str(caught.value)
    assert name in message and repr(text) in message and "must be" in message


def test_prefixes_are_kept_apart_by_keys_that_there_are(env):
    with pytest.raises(SettingError, match="PREFIX_SHARING='key': needs keys"):
        read_settings(env | {"PREFIX_SHARING": "key"})
    assert read_settings(env | {"PREFIX_SHARING": "key"}, rank=1).keys_apart, "who has no keys"
    assert read_settings(env | {"PREFIX_SHARING": "key", "API_KEY": "one"}).keys_apart
    assert not read_settings(env | {"API_KEY": "one"}).keys_apart


def test_what_is_warmed_needs_room(env):
    warm = env | {"PREFIX_WARM": "/a.txt, ~/b.json"}
    assert read_settings(warm).prefix_warm == ("/a.txt", "~/b.json")
    with pytest.raises(SettingError, match="PREFIX_CACHE_PERCENT=0"):
        read_settings(warm | {"PREFIX_CACHE_PERCENT": "0"})


def test_a_pipe_is_no_file_of_keys_and_is_not_waited_for(env, tmp_path):
    os.mkfifo(tmp_path / "keys")
    with pytest.raises(SettingError, match="API_KEY_FILE=.*keys.*it is a folder, a pipe"):
        read_settings(env | {"API_KEY_FILE": str(tmp_path / "keys")})


@pytest.mark.parametrize("folder", ["", "/no/such/folder", "~nobody-of-this-name/x", "x" * 5000])
def test_model_dir_must_be_a_folder(folder):
    with pytest.raises(SettingError, match="MODEL_DIR"):
        read_settings({"MODEL_DIR": folder})


def test_model_dir_must_not_be_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="no such folder"):
        read_settings({"MODEL_DIR": str(tmp_path / "file")})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_model_dir_behind_a_closed_door_is_named(tmp_path):
    """A PermissionError used to come out as a traceback instead of a setting's name."""
    (tmp_path / "closed" / "model").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.raises(SettingError, match="MODEL_DIR"):
            read_settings({"MODEL_DIR": str(tmp_path / "closed" / "model")})
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_keys_come_from_the_variable_and_the_file_together(env, tmp_path):
    (tmp_path / "keys").write_text("two\n\n  three  \n")
    env |= {"API_KEY": "one", "API_KEY_FILE": str(tmp_path / "keys")}
    keys = [key for key, _ in read_settings(env).keys]
    assert keys == ["one", "two", "three"]


def test_only_rank_0_reads_the_keys(env, tmp_path):
    """A worker ended with a TypeError, whatever was set."""
    assert read_settings(env, rank=1).keys == ()
    env |= {"API_KEY": "one", "API_KEY_FILE": str(tmp_path / "keys")}
    assert read_settings(env, rank=1).keys == ()


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe", None])
def test_key_file_that_holds_no_key_does_not_open_the_door(env, tmp_path, content):
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(SettingError, match="API_KEY_FILE"):
        read_settings(env | {"API_KEY_FILE": str(tmp_path / "keys")})


def test_key_variable_that_holds_no_key_does_not_open_the_door(env):
    with pytest.raises(SettingError, match="API_KEY"):
        read_settings(env | {"API_KEY": " , "})


def test_workers_read_the_same_settings_and_no_keys(env):
    """A worker ended at once: keys are rank 0's, and where they are is not for a worker to know."""
    settings = read_settings(env | {"API_KEY_FILE": "/nowhere/keys", "QUEUE_MAX": "3"}, rank=1)
    assert (settings.queue_max, settings.api_keys, settings.keys) == (3, (), ())
