"""Can every host be launched on: the hostfile, ssh, the shell's environment. Pure."""

from collections.abc import Iterator

from scripts.lib.doctor.cluster import Cluster
from scripts.lib.doctor.facts import HostFacts
from scripts.lib.doctor.findings import FAIL, PASS, WARN, Finding, Fix
from scripts.lib.hosts.hostfile import find_problems
from scripts.lib.hosts.on_hosts import KEY_CHANGED, LOCAL_HOST, forget_key

AWAY = "wake or start {host}; see that it is on the network: ping {host}"
# What ssh says, and what somebody does about it.
SSH_WORDS = (
    (
        "Permission denied",
        "ssh-copy-id {host}. Or has that Mac booted with FileVault on? Then no key helps before "
        "its disk is unlocked: ssh {host} once, with the password (macOS 26 or later; it hangs up, "
        "and lets keys in a moment later)",
    ),
    ("Host key verification failed", "ssh {host}, compare the fingerprint, answer yes"),
    (
        "Could not resolve",
        "correct the name in the hostfile, or add a Host {host} to ~/.ssh/config, or take the name "
        "that a Mac gives itself: what scutil --get LocalHostName says there, and .local behind it",
    ),
    (
        "Connection refused",
        "on {host}: System Settings, General, Sharing, turn on Remote Login (Linux: start sshd)",
    ),
    ("timed out", AWAY),
    (
        "No route to host",
        AWAY + ". If ping gets there: macOS keeps the program that you work in from the local "
        "network (System Settings, Privacy & Security, Local Network); Terminal may use it, and so "
        "may whoever came in by ssh",
    ),
    ("Host is down", AWAY),
    (
        # ssh itself gives up sooner where there is no connection.
        "no answer within",
        "{host} lets us in and then hangs: log in by hand, look into its start-up files "
        "(~/.zshenv) and at disks that do not answer; or restart it",
    ),
)

# A rank would take these for the launcher's own.
LAUNCH_VARIABLES = (
    "MLX_RANK", "MLX_WORLD_SIZE", "MLX_HOSTFILE", "MLX_IBV_DEVICES", "MLX_JACCL_COORDINATOR",
    "MLX_JACCL_RING", "JACCL_RANK", "JACCL_IBV_DEVICES", "JACCL_COORDINATOR", "JACCL_RING",
)  # fmt: skip
FAST_SYNCH = "MLX_METAL_FAST_SYNCH"


def hostfile(cluster: Cluster) -> Iterator[Finding]:
    """The file by itself, whatever the hosts say."""
    plan = cluster.plan
    problems = find_problems(plan.hostfile, plan.backend)
    for problem in problems:
        yield Finding(
            "hostfile",
            None,
            FAIL,
            problem,
            'the launcher says "The hostfile is malformed", or every rank comes up alone, as '
            "rank 0 of 1",
            Fix(
                f"or edit {plan.hostfile_name} by hand; docs/from-scratch.md explains each entry",
                command=plan.make_hostfile,
                here=True,
            ),
        )
    if not problems:
        words = f"{plan.hostfile_name}: {len(plan.ranks)} rank(s), {plan.backend}"
        yield Finding("hostfile", None, PASS, words)


def ssh(cluster: Cluster) -> Iterator[Finding]:
    """The host lets us in without a question, and its shell prints nothing by itself."""
    for facts in cluster.facts.values():
        if facts.noise:
            yield _noisy(facts)
        if facts.trouble:
            yield _unreachable(facts)
        elif facts.errors and facts.host != LOCAL_HOST:
            first = facts.errors.splitlines()[0]
            yield Finding(
                "ssh",
                facts.host,
                WARN,
                f"something is written to stderr: {first}",
                "with the terminal that the launcher asks for, it lands in the ranks' output",
                Fix("silence it; start-up files such as ~/.zshenv should print nothing"),
            )


def _noisy(facts: HostFacts) -> Finding:
    first = facts.noise.splitlines()[0]
    return Finding(
        "ssh",
        facts.host,
        FAIL,
        f"its shell prints by itself: {first}",
        "MLX's launcher takes the first line that a rank prints for the name of its pid file, "
        "so ranks cannot be ended and their memory stays taken",
        Fix(
            f"find what prints it in ~/.zshenv (bash: ~/.bashrc) on {facts.host} and let it do "
            "so in interactive shells alone: [[ -o interactive ]] && ...; then "
            f"ssh {facts.host} true must print nothing"
        ),
    )


def _unreachable(facts: HostFacts) -> Finding:
    words = next((fix for sign, fix in SSH_WORDS if sign in facts.trouble), "ssh -v {host} true")
    if KEY_CHANGED in facts.trouble:
        words = forget_key(facts.host)
    symptom = "a rank ends with exit code 255 and shows nothing; the others wait for it"
    if facts.host == LOCAL_HOST:
        words, symptom = "see that /bin/sh runs here", "no rank starts"
    return Finding(
        "ssh", facts.host, FAIL, facts.trouble, symptom, Fix(words.format(host=facts.host))
    )


def environment(cluster: Cluster) -> Iterator[Finding]:
    """Nothing in the shell's start-up files changes what a rank does."""
    plan = cluster.plan
    if plan.fast_synch not in ("", "0"):
        yield Finding(
            "environment",
            None,
            WARN,
            f"{FAST_SYNCH}={plan.fast_synch} was asked for",
            "it is faster, but ranks can deadlock, and a GPU can stay wedged until its Mac is "
            "restarted (ml-explore/mlx issues 3142 and 3830)",
            Fix(f"unset {FAST_SYNCH}, unless you measured that it is worth the risk", here=True),
        )
    for facts in cluster.reached:
        found = facts.environment or {}
        stray = [name for name in LAUNCH_VARIABLES if name in found]
        where = f"take it out of ~/.zshenv (or ~/.ssh/environment) on {facts.host}"
        if stray:
            yield Finding(
                "environment",
                facts.host,
                FAIL,
                f"{', '.join(stray)} set for every command",
                "the rank joins another job, over another backend, or comes up alone: "
                "MLX reads it as the launcher's word",
                Fix(where),
            )
        elif found.get(FAST_SYNCH, "0") not in ("", "0") and not plan.fast_synch:
            yield Finding(
                "environment",
                facts.host,
                WARN,
                f"{FAST_SYNCH}={found[FAST_SYNCH]} set for every command, and not asked for",
                "ranks can deadlock, and a GPU can stay wedged until its Mac is restarted",
                Fix(where),
            )
