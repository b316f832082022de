"""The command lines of all verbs: the same words for the same mistake, and options that agree."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lib.verbs.header import bash_parser, help_of, read_help, usage_options
from scripts.lib.verbs.parser import Parser
from scripts.lib.verbs.shared import FLAGS, KINDS
from tests.support.paths import ROOT

SCRIPTS = ROOT / "scripts"
BASH = ["run_openai_cluster_server.sh", "stop_openai_cluster_server.sh", "verify_cluster.sh",
        "install_service.sh", "bench.sh", "bench_link.sh", "dev/bench_compare.sh",
        "lib/link/link_check.sh"]  # fmt: skip
# The module of each verb that is Python, as its script names it.
PYTHON = {
    path.name: found[1]
    for path in sorted(SCRIPTS.glob("*.sh"))
    if (found := re.search(r"^  exec_verb (\S+)", path.read_text("utf-8"), re.M))
}
# What is run as it is, or by its module's name.
PROGRAMS = ["bench_serving.py"]
MODULES = ["dev/soak.py", "dev/fault_table.py", "lib/model/check_model.py"]


def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [str(SCRIPTS / name)]
    if name in MODULES:
        module = name.removesuffix(".py").replace("/", ".")
        command = [sys.executable, str(SCRIPTS / "lib" / "module.py"), module]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def parser_of(name: str) -> Parser:
    module = importlib.import_module(f"scripts.{PYTHON[name]}")
    return getattr(module, "make_parser", None)() if hasattr(module, "make_parser") else (
        module.parser())  # fmt: skip


def names(parser: Parser) -> set[str]:
    return {name for name in parser._option_string_actions if name.startswith("--")}


def test_every_verb_is_looked_at():
    verbs = {path.name for path in SCRIPTS.glob("*.sh")} - {"test.sh"}  # whose options are pytest's
    assert verbs == {name for name in [*BASH, *PYTHON] if "/" not in name}


@pytest.mark.parametrize("name", [*BASH, *PYTHON, *PROGRAMS, *MODULES])
def test_an_unknown_option_is_named_with_the_nearest_and_is_code_2_everywhere(name):
    done = run(name, "--hepl")
    program = Path(name).name
    told = f"{program}: unknown argument '--hepl': the nearest known one is --help; see --help\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


@pytest.mark.parametrize("name", [*BASH, *PYTHON, *PROGRAMS])
def test_help_wins_over_what_is_wrong_and_names_every_option(name):
    done = run(name, "--prot", "x", "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert re.search(rf"^usage: {re.escape(Path(name).name)}", done.stdout, re.M | re.I)
    body = re.sub(r"^usage: .*?\n\n", "", done.stdout, count=1, flags=re.M | re.S | re.I)
    unexplained = {
        option.name
        for option in usage_options(done.stdout)
        if not re.search(rf"(?<![\w-]){option.name}\b", body)
    }
    assert unexplained <= {"--help", "-h"}


@pytest.mark.parametrize("name", PYTHON)
def test_the_help_of_a_python_verb_has_the_options_that_its_module_reads(name):
    told = {option.name for option in usage_options(help_of(name)) if option.name[:2] == "--"}
    assert told | {"--help"} == names(parser_of(name)) | {"--help"}


@pytest.mark.parametrize("name", BASH)
def test_bash_takes_each_option_that_its_help_names(name):
    """What is neither shared nor in take_option would be lost without a word."""
    path = SCRIPTS / name
    text = path.read_text("utf-8") + (SCRIPTS / "lib" / "ask_python.sh").read_text("utf-8")
    taken = set(re.findall(r"(--[a-z-]+)(?= \||\))", text))
    asked = names(bash_parser(path.name, read_help(path))) - {"--help"}
    assert sorted(asked - taken) == []


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--port", "0", "--port '0': must be a whole number from 1 to 65535"),
        ("--port", "http", "--port 'http': must be a whole number from 1 to 65535"),
        ("--port", None, "--port needs a value"),
        ("--local", "9", "--local '9': must be a number of ranks from 1 to 8"),
        ("--local", None, "--local needs a value"),
        ("--env", "x", "--env 'x': must be NAME=VALUE"),
        ("--env", "API_KEY=k", "--env API_KEY: everyone on the host could read it in ps"),
        ("--hostfile", "", "--hostfile must not be empty"),
        ("--dry-run=1", None, "--dry-run takes no value"),
        ("--json=1", None, "--json takes no value"),
    ],
)
def test_a_shared_option_means_the_same_wherever_it_is(option, value, told, capsys):
    parsers = [bash_parser(name, read_help(SCRIPTS / name)) for name in BASH]
    parsers += [parser_of(name) for name in PYTHON]
    parsers = [parser for parser in parsers if option.partition("=")[0] in names(parser)]
    assert len(parsers) > 1
    for parser in parsers:
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([option] if value is None else [option, value])
        assert ended.value.code == 2
        assert f"{parser.prog}: {told}" in capsys.readouterr().err


def test_what_several_verbs_have_is_shared():
    """A second option of the same name would drift away."""
    seen: dict[str, set[str]] = {}
    for name in BASH:
        for option in usage_options(read_help(SCRIPTS / name)):
            seen.setdefault(option.name, set()).add(option.value)
    assert {name: values for name, values in seen.items() if len(values) > 1} == {}
    assert {*KINDS, *FLAGS} <= seen.keys()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--clients", "2", "--rate", "1"], "--clients and --rate: one of them"),
        (["--url", "x", "--port", "1"], "--url and --port: one of them"),
        (["--clients", "0"], "--clients '0': must be a whole number from 1 to 4096"),
        (["--api", "x"], "--api 'x': must be one of chat, completions"),
        (["now"], "unknown argument 'now'"),
    ],
)
def test_the_benchmark_of_a_server_says_what_is_wrong_in_the_same_words(words, told):
    done = run("bench_serving.py", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"bench_serving.py: {told}; see --help\n"
