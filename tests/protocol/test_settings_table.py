"""The table of settings: one row a setting, one judgement of a value, all else made of it."""

import ast
import dataclasses
import os
import re
import shutil
import subprocess
import sys

import pytest

from server.protocol.setting import MOST_CHARACTERS, SettingError, parse, plain
from server.protocol.settings import Settings, read_settings
from server.protocol.settings_table import BY_NAME, OF_USERS, RANK, SCRIPTS, SERVICE, TABLE
from tests.support.paths import ROOT

FOLDER = ROOT / "scripts" / "lib"
CLI = [str(FOLDER / "module.py"), "lib.settings.settings"]
RUN = "run_openai_cluster_server"

ODD = (
    "08", "1e3", "1E3", "1e+3", "1e-3", " 5 ", "\t5\n", "+5", "-5", "-0", "0", "0.0", "00", "٣",
    "5_0", "", " ", "nan", "inf", "-inf", "infinity", "9" * 5000, "0." + "3" * 5000, ".5", "5.",
    "5.0", "5.25", "0x10", "5 6", "5,6", "5;id", "$(id)", "`id`", "true", "1", "INFO", "info",
    "tensor", "ring", "²", "５", "5\u00a0", "\ufeff5", "a b", "a'b", 'a"b', "a\\b", "-n", "--help",
    "a=b", "a\nb", "a\tb", "a\x1fb", "a\x7fb", "é", "'5'", "1e99", "1e400", "0.1", "0.09",
    "1,000", "5s", "None", "::", "*", "~", "~/x", "x" * 40_000,
)  # fmt: skip


def takes(setting, text):
    try:
        return parse(setting, text), plain(setting, text)
    except SettingError:
        return None


def test_every_name_stands_once_and_every_reader_is_a_script_or_the_ranks():
    assert len(BY_NAME) == len(TABLE)
    scripts = {path.stem for path in ROOT.glob("scripts/**/*.*")}
    readers = {reader for setting in TABLE for reader in setting.readers} - {"rank", "launch"}
    assert sorted(readers - scripts) == []


def test_every_script_that_checks_settings_is_a_reader():
    """One that the table does not know would check nothing."""
    files = [*ROOT.glob("scripts/**/*.sh")]
    checking = {
        path.stem
        for path in files
        if re.search(r"^  (check_settings$|exec_verb )", path.read_text(), re.M)
    } - {"common"}
    assert checking == set(SCRIPTS)
    for name in checking:
        assert any(setting.read_by(name) for setting in TABLE), name


def test_every_setting_of_the_ranks_has_its_field_and_every_field_its_setting():
    fields = {field.name for field in dataclasses.fields(Settings)}
    of_ranks = {setting.attribute for setting in TABLE if setting.read_by(RANK)}
    assert of_ranks - fields == set()
    assert fields - of_ranks == {"keys"}


@pytest.mark.parametrize("setting", TABLE, ids=lambda setting: setting.name)
def test_a_default_is_a_right_value(setting):
    if setting.default is None:
        return
    assert takes(setting, str(setting.default))
    assert parse(setting, "") == parse(setting, str(setting.default))


@pytest.mark.parametrize("setting", TABLE, ids=lambda setting: setting.name)
def test_what_scripts_hand_on_is_what_was_said(setting):
    """The text that bash exports means the same to the ranks as what the user wrote."""
    for text in ODD:
        if taken := takes(setting, text):
            value, handed_on = taken
            assert handed_on == handed_on.strip() or setting.kind == "free"
            assert parse(setting, handed_on) == value, text
            assert setting.kind == "free" or not re.search(r"[\x00-\x1f]", handed_on), text


@pytest.mark.parametrize("setting", OF_USERS, ids=lambda setting: setting.name)
def test_a_refusal_names_setting_value_and_what_is_allowed_but_no_secret(setting):
    refused = [text for text in ODD if text.strip() and takes(setting, text) is None]
    assert refused
    for text in refused:
        with pytest.raises(SettingError, match=setting.name) as caught:
            parse(setting, text)
        assert "must be" in str(caught.value)
        if setting.secret:
            assert text.strip()[:100] not in str(caught.value) or len(text.strip()) < 4
        elif len(text) <= MOST_CHARACTERS:
            values = [text.strip(), *text.replace(",", " ").split()]  # of words, the wrong one
            assert any(repr(value) in str(caught.value) for value in values)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("QUEUE_MAX", ["0", " 5 ", "\t5\n", "1", "5\u00a0"],
         ["08", "1e3", "+5", "-0", "-5", "٣", "５", "²", "5_0", "nan", "5.0", "00",
          "9" * 5000, "\ufeff5"]),
        ("REQ_TIMEOUT", ["0.1", "5", "5.25", "1e3", "1E3", "1e+3"],
         ["08", "+5", "-5", "0", "0.09", "٣", "5_0", "nan", "inf", "1e99", "1e400",
          "1e-3", ".5", "5.", "0x10"]),
        ("DRAIN_TIMEOUT", ["0", "0.0"], ["-0", "-0.0", "infinity", "5s"]),
        ("LOG_PROMPTS", ["0", "1", " 1 "], ["true", "01", "2"]),
        ("LOG_LEVEL", ["INFO", " DEBUG "], ["info", "INFO DEBUG"]),
        ("HTTP_HOST", ["::", "0.0.0.0", "a-b.c"], ["a b", "-n", "é", "a\nb", "*"]),
        ("MODEL_ID", ["org/name", "a b"], ['a"b', "a\\b", "é", "-n", "x" * 201]),
        ("API_KEY", ["a", " a , b ,", "é"], [" , ", ",", "a b", "a\nb", "a, b\tc", "a\x00"]),
        ("ALLOWED_ORIGINS", ["*", "http://a, http://b", "a\tb"], ["a\x00b"]),
        ("MODEL_DIR", ["/a b", "~/x", "é"], ["a\nb", "a\x1fb", "x" * 40_000]),
    ],
)  # fmt: skip
def test_values_at_the_edges(name, right, wrong):
    setting = BY_NAME[name]
    assert [text for text in right if takes(setting, text) is None] == []
    assert [text for text in wrong if takes(setting, text) is not None] == []


BASH = """
set -euo pipefail
. "$1/scripts/lib/common.sh"
. "$1/scripts/lib/cluster_env.sh"
check_settings
env -0
"""


def bash(**settings: str) -> tuple[int, dict[str, str], str]:
    """What check_settings leaves in the environment, for the run script."""
    done = subprocess.run(
        ["bash", "-c", BASH, RUN, ROOT],
        env={"PATH": os.environ["PATH"], "CLUSTER_ENV": os.devnull} | settings,
        stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip
    pairs = (entry.split("=", 1) for entry in os.fsdecode(done.stdout).split("\0") if "=" in entry)
    return done.returncode, dict(pairs), os.fsdecode(done.stderr)


OF_EACH_KIND = ("QUEUE_MAX", "REQ_TIMEOUT", "LOG_LEVEL", "LOG_PROMPTS", "HTTP_HOST", "MODEL_ID",
                "API_KEY", "ALLOWED_ORIGINS", "LOG_DIR")  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["08", "1e3", " 5 ", "+5", "٣", "5_0", "", "nan", "inf", "-0", "9" * 5000, ".5", "1", "$(id)",
     "a b", "a\nb", "é", 'a"b', "x" * 40_000],
    ids=lambda text: repr(text)[:20],
)  # fmt: skip
def test_bash_and_the_server_accept_the_same_and_mean_the_same(text, tmp_path):
    """They used to be two parsers: 08 was a number to one of them, and a key with a blank was one
    key on this machine and another on a remote rank 0."""
    base = {"MODEL_DIR": str(tmp_path)}
    wrong = set()
    for name in OF_EACH_KIND:
        try:
            read_settings(base | {name: text})
        except SettingError:
            wrong.add(name)
    code, _, errors = bash(**base, **dict.fromkeys(OF_EACH_KIND, text))
    assert code == (2 if wrong else 0), errors
    named = {name for name in OF_EACH_KIND if re.search(rf"^{RUN}: {name}\b", errors, re.M)}
    assert named == wrong, errors
    right = {name: text for name in OF_EACH_KIND if name not in wrong}
    code, environment, errors = bash(**base, **right)
    assert code == 0, errors
    assert read_settings(environment) == read_settings(base | right)


def test_the_table_and_its_command_line_are_python_3_9():
    """macOS has no newer one of its own, and scripts must tell what is wrong before there is."""
    for path in (
        ROOT / "server/protocol/setting.py",
        ROOT / "server/protocol/settings_table.py",
        FOLDER / "module.py",
        FOLDER / "settings" / "settings.py",
        FOLDER / "settings" / "kept_settings.py",
        FOLDER / "settings" / "interpreter.py",
        FOLDER / "hosts" / "find_hostfile.py",
        FOLDER / "hosts" / "our_process.py",
        FOLDER / "status" / "servers.py",
        FOLDER / "bench" / "tps_options.py",
        FOLDER / "link" / "bench_link_options.py",
        *(
            FOLDER / "verbs" / f"{name}.py"
            for name in ("parser", "shared", "header", "options", "exit_codes")
        ),
    ):
        tree = ast.parse(path.read_text("utf-8"), feature_version=(3, 9))
        names = {
            alias.name if isinstance(node, ast.Import) else node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        ours = {name for name in names if name.split(".")[0] in ("server", "scripts")}
        allowed = ("server.protocol", *(["scripts.lib"] if "scripts" in path.parts else []))
        assert all(name.startswith(allowed) for name in ours)
        assert names - ours <= sys.stdlib_module_names | {"collections.abc"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("lib.verbs.options", "scripts/run_openai_cluster_server.sh", "--", "--local", "2"),
        ("lib.verbs.options", "scripts/bench.sh", "--with", "lib.bench.tps_options", "--", "--raw"),
        ("lib.settings.settings", "check", "run_openai_cluster_server"),
        ("lib.settings.interpreter", "path"),
        ("lib.hosts.find_hostfile", "hostfiles/m3-ultra-jaccl.template.json"),
        ("lib.status.servers", "."),
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_bash_asks_runs_with_macos_s_own_python(arguments):
    """By the oldest Python that is here; the test above sees to 3.9 itself."""
    is_one = "import sys; sys.exit(sys.version_info < (3, 9))"
    for python in ("python3.9", "/usr/bin/python3", sys.executable):
        if shutil.which(python) and not subprocess.run([python, "-c", is_one]).returncode:
            break
    command = [python, "-I", "-S", "scripts/lib/module.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(arguments[0].rpartition(".")[2] + "\n")


def made(what: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-S", *CLI, what, *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, _, rest = done.stdout.partition("\n")
    assert first == "settings"
    return rest


def test_the_runbook_s_table_is_the_table():
    text = (ROOT / "docs" / "from-scratch.md").read_text("utf-8")
    (block,) = re.findall(
        r"^<!-- settings: made by [^\n]* docs -->\n(.*?)^<!-- end of settings",
        text, re.M | re.S,
    )  # fmt: skip
    assert block == made("docs"), "module.py lib.settings.settings docs prints what belongs there"


def test_the_template_is_the_table():
    text = (ROOT / "hostfiles" / "cluster.env.template").read_text("utf-8")
    assert text == made("template"), (
        "module.py lib.settings.settings template prints what belongs there"
    )


@pytest.mark.parametrize("script", sorted({*SCRIPTS}))
def test_help_lists_what_the_script_reads(script):
    (path,) = [*ROOT.glob(f"scripts/**/{script}.sh")]
    text = subprocess.run([path, "--help"], capture_output=True, text=True, check=True).stdout
    listed = re.findall(r"^  ([A-Z][A-Z_]+)  ", text, re.M)
    assert listed == [setting.name for setting in OF_USERS if setting.read_by(script)]
    assert "Exit codes:" in text and script in text


def test_help_works_without_a_python(tmp_path):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for tool in ("bash", "env", "dirname", "awk"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    done = subprocess.run(
        [tmp_path / "scripts" / f"{RUN}.sh", "--help"],
        env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "Usage:" in done.stdout
    assert "docs/from-scratch.md (no Python" in done.stdout


def test_without_a_python_a_script_says_so(tmp_path):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for tool in ("bash", "env", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    done = subprocess.run(
        [tmp_path / "scripts" / f"{RUN}.sh", "--local", "1"],
        env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3 and "no Python 3.11 or later found" in done.stderr


def test_the_service_reads_what_the_run_script_reads():
    assert [s.name for s in TABLE if s.read_by(SERVICE)] == [
        s.name for s in TABLE if s.read_by(RUN)
    ]
