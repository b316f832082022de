"""Mistyped settings in the environment, told from what is others'."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.lib.settings.kept_settings import resolve
from server.protocol.misspelt import LONG, find_misspelt, is_slip, slips
from server.protocol.setting import RUN, SettingError
from server.protocol.settings import read_settings
from server.protocol.settings_table import BY_NAME

SLIPS = {
    "QUEUE_MAXX": "QUEUE_MAX",
    "QEUUE_MAX": "QUEUE_MAX",
    "QUEUEMAX": "QUEUE_MAX",
    "queue_max": "QUEUE_MAX",
    "MAX_BACTH": "MAX_BATCH",
    "MAXBATCH": "MAX_BATCH",
    "HTTP_PROT": "HTTP_PORT",
    "MODELDIR": "MODEL_DIR",
    "MODEL_DRI": "MODEL_DIR",
    "STALL_TIMEOUTS": "STALL_TIMEOUT",
    "API_KEYS": "API_KEY",
    "API_KEY_FIL": "API_KEY_FILE",
    "DEFAULT_MAX_TOKN": "DEFAULT_MAX_TOKENS",
    "HOST_FILE": "HOSTFILE",
    "BACKENT": "BACKEND",
}
# What machines of users and of CI have.
TEXT = """
PATH HOME USER SHELL TERM LANG PWD OLDPWD LOGNAME HOSTNAME HOSTTYPE SHLVL EDITOR VISUAL PAGER
DISPLAY TMPDIR SSH_CLIENT SSH_TTY SSH_CONNECTION HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy
https_proxy no_proxy HTTPS_PORT FTP_PORT SMTP_PORT PORT HOST PYTHONPATH PYTHONHOME PYTHON3 PYTHON2
PYTHONUNBUFFERED PYTHONUTF8 VIRTUAL_ENV CONDA_PREFIX CONDA_DEFAULT_ENV CONDA_SHLVL
CONDA_PYTHON_EXE _CONDA_EXE _CONDA_ROOT _CE_CONDA _ HF_HOME HF_HUB_OFFLINE HF_TOKEN_PATH LOGDIR
LOG_FILE APIKEY OPENAI_API_KEY ANTHROPIC_API_KEY API_KEY_2 API_KEY2 MODEL MODELS MODEL_NAME
MODEL_PATH MAX_TOKENS QUEUE MAX_SIZE BATCH READ_TIMEOUT REQUEST_TIMEOUT TIMEOUT PARALLEL_JOBS
MLX_RANK MLX_HOSTFILE MLX_METAL_DEBUG JACCL_RING RANK_HOSTS LD_PRELOAD OPENBLAS_NUM_THREADS CI
DEBIAN_FRONTEND XDG_RUNTIME_DIR DBUS_SESSION_BUS_ADDRESS COLUMNS LINES CLUSTER SERVER_PORT
ALLOWED_HOST
"""
OTHERS = TEXT.split()


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_names_the_setting_that_was_meant(name, tmp_path):
    meant = SLIPS[name]
    assert find_misspelt([name, *OTHERS], BY_NAME) == {name: meant}
    words = f"{name}: no such setting; did you mean {meant}?"
    with pytest.raises(SettingError, match=words.replace("?", r"\?")):
        read_settings({"MODEL_DIR": str(tmp_path), name: "5"})
    _, problems = resolve(RUN, {"CLUSTER_ENV": "/dev/null", name: "5"})
    assert len(problems) == 1 and problems[0].startswith(words)
    _, problems = resolve(RUN, {"CLUSTER_ENV": "/dev/null"}, [f"{name}=5"])
    assert len(problems) == 1 and problems[0].startswith(words)


def test_what_is_others_is_left_alone():
    assert find_misspelt(OTHERS, BY_NAME) == {}


def test_no_setting_is_a_slip_of_another():
    for one in BY_NAME:
        assert find_misspelt([one], BY_NAME) == {}
        others = [other for other in BY_NAME if other != one and is_slip(one, other)]
        # Either with what is meant for the other is refused: a folder that is a model, or is none.
        assert others == [] or {one, *others} == {"MODEL_DIR", "MODELS_DIR"}


# Few letters, so that many a pair is a slip or two apart.
WORDS = st.text(alphabet="ABC_", min_size=1, max_size=20)


@given(WORDS, WORDS, st.integers(0, 19), st.integers(0, 2))
def test_what_is_told_apart_at_once_is_more_than_slips_apart(ours, more, place, length):
    name = ours[:place] + more[:length] + ours[place + length :]
    most = 2 if len(ours) >= LONG else 1
    near = name.replace("_", "") == ours.replace("_", "") or slips(name, ours) <= most
    assert is_slip(name, ours) == near
