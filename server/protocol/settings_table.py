"""Every setting of the toolkit, once: name, kind, default, limits, meaning, and who reads it.

From this table come the server's reader (settings.py), the scripts' check and `--help`
(scripts/lib/settings/settings.py), what the ranks get and what a service remembers, the table of
docs/from-scratch.md and hostfiles/cluster.env.template. To add a setting, add it here; if ranks
read it, give `Settings` a field of the same name in lower case, too. What a value may be stands in
setting.py. As that, it runs under Python 3.9.
"""

from server.protocol.domains import MOST
from server.protocol.setting import RUN, SERVICE, Setting

# Who reads a setting: the ranks' Settings, every process that the launcher starts, or scripts, by
# their names. What the run script reads install_service.sh reads, too.
RANK, LAUNCH = "rank", "launch"
STOP = "stop_openai_cluster_server"
STATUS, LOGS, DOCTOR = "status", "logs", "verify_cluster"
BENCH, BENCH_LINK, LINK_CHECK, COMPARE = "bench", "bench_link", "link_check", "bench_compare"
SYNC_NODES, SYNC_MODEL, MAKE_HOSTFILE = "sync_nodes", "sync_model", "make_hostfile"
SYNC = (SYNC_NODES, SYNC_MODEL)
CHECK_MODEL, SETUP = "check_model", "setup_cluster"
LAUNCHERS = (RUN, BENCH, BENCH_LINK, LINK_CHECK, DOCTOR)
USE_HOSTS = (*LAUNCHERS, STOP, *SYNC, CHECK_MODEL, SETUP)
USE_PYTHON = (*USE_HOSTS, STATUS, LOGS, COMPARE, MAKE_HOSTFILE)
SERVER = (RANK, RUN, COMPARE)
SCRIPTS = (*USE_PYTHON, SERVICE)

YEAR_S = 31_536_000
DEFAULT_HOSTFILE = "hostfiles/m3-ultra-jaccl.local.json"  # in the checkout

TABLE = (
    Setting(
        "MODEL_DIR", "path", "Folder of an MLX model, the same path on every host",
        (*SERVER, BENCH, BENCH_LINK, DOCTOR, SYNC_MODEL, SETUP),
        otherwise="the demo model with --local, else needed",
    ),
    Setting(
        "MODEL_ID", "text", "Its name in the API", (*SERVER, BENCH, DOCTOR, SYNC_MODEL, SETUP),
        otherwise="the folder's name",
        pattern=r"[A-Za-z0-9][A-Za-z0-9 ._:/@+-]{0,199}",
        allowed="up to 200 letters, digits, spaces and any of ._:/@+-",
    ),
    Setting(
        "MODEL_ALIASES", "words", "Other names that reach it, commas or blanks between; * for any",
        SERVER, otherwise="none", pattern=r"\*|[A-Za-z0-9][A-Za-z0-9._:/@+\[\]-]{0,199}",
        allowed="names of up to 200 letters, digits and any of ._:/@+-[], or *",
    ),
    Setting(
        "MODELS", "folders",
        "More models behind the same endpoint, loaded when they are asked for: NAME=FOLDER each,"
        " commas or blanks between, the same on every host",
        (*SERVER, BENCH, DOCTOR, SYNC_MODEL, SETUP), otherwise="none",
        pattern=r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}=[/~].*",
        allowed="NAME=/FOLDER, where the name has up to 200 letters, digits and any of ._:/@+-",
    ),
    Setting(
        "MODELS_DIR", "path",
        "The same for every folder below it that is a model, up to three deep, by its path from"
        " there",
        (*SERVER, BENCH, DOCTOR, SYNC_MODEL, SETUP), otherwise="none",
    ),
    Setting(
        "MODELS_GB", "decimal",
        "Memory of each rank for the weights of all models that are loaded, in GB (10^9 bytes)",
        (*SERVER, DOCTOR), most=100_000, unit="GB",
        otherwise="what leaves each some memory for KV caches",
    ),
    Setting(
        "PINNED", "words", "Models that are never unloaded, commas or blanks between",
        (*SERVER, DOCTOR), otherwise="none", allowed="names of models",
    ),
    Setting(
        "IDLE_UNLOAD", "decimal",
        "Seconds without requests after which a model is unloaded that is not pinned; 0: never",
        SERVER, 0, least=0, most=YEAR_S, unit="seconds",
    ),
    Setting(
        "CHAT_TEMPLATE_KWARGS", "text", "Variables of the chat template for requests without them",
        SERVER, otherwise="none", pattern=r"\{.*\}", allowed="a JSON object",
    ),
    Setting(
        "HOSTFILE", "path", "The hosts of the cluster; not used with --local", USE_HOSTS,
        otherwise=f"{DEFAULT_HOSTFILE}, or the only *.local.json",
    ),
    Setting(
        "BACKEND", "choice", "What the ranks talk over", (LAUNCH, *LAUNCHERS),
        otherwise="the hostfile's; else jaccl if it has an rdma matrix, else ring",
        choices=("ring", "jaccl", "jaccl-ring"),
    ),
    Setting(
        "PARALLEL", "choice",
        "Split every layer (tensor), give each rank some (pipeline), or the first of these that the"
        " model allows (auto)",
        (*SERVER, BENCH, DOCTOR, CHECK_MODEL), "auto", choices=("auto", "tensor", "pipeline"),
    ),
    Setting(
        "TRUST_REMOTE_CODE", "switch",
        "1 runs Python of the model's folder, for a tokenizer that cannot be made without it",
        (*SERVER, DOCTOR, CHECK_MODEL), 0,
    ),
    Setting(
        "HTTP_HOST", "text", "Address that rank 0 listens on", SERVER, "127.0.0.1",
        otherwise="127.0.0.1 with --local, else 0.0.0.0",
        pattern=r"[A-Za-z0-9:][A-Za-z0-9.:%_-]{0,252}", allowed="an address or a host name",
    ),
    Setting(
        "HTTP_PORT", "whole", "Its port, and which server is meant",
        (*SERVER, STOP, STATUS, LOGS, DOCTOR, SETUP, "bench_serving", "soak"), 8080, least=1,
        most=65535,
    ),
    Setting(
        "API_KEY", "keys",
        "Keys that clients must send, commas between; any one will do. Not with --env, which ps"
        " shows",
        (*SERVER, STATUS, SETUP, "bench_serving", "soak"), otherwise="none", secret=True,
        field="api_keys",
    ),
    Setting(
        "API_KEY_FILE", "path",
        "File with one key a line, on the host of rank 0; read again when it changes. After a key"
        " and a blank may come the name by which the request log knows it",
        (*SERVER, STATUS, SETUP), otherwise="none",
    ),
    Setting(
        "OPERATOR_KEYS", "words",
        "Names of keys in API_KEY_FILE that may stop anybody's request, commas or blanks between;"
        " any key may stop its own",
        SERVER, otherwise="none",
    ),
    Setting(
        "ALLOWED_ORIGINS", "words",
        "Origins of web pages that may call the server, commas or blanks between; * for all",
        SERVER, otherwise="none",
    ),
    Setting(
        "ALLOWED_HOSTS", "words",
        "Names by which clients may call a server without a key, beside this machine's own, commas"
        " or blanks between; * for all",
        SERVER, otherwise="none", pattern=r"\*|[A-Za-z0-9._-]+",
        allowed="host names without scheme and port, or *, with commas or blanks between",
    ),
    Setting("MAX_BATCH", "whole", "Requests that run together", SERVER, 8, least=1, most=1024),
    Setting(
        "QUEUE_MAX", "whole", "Requests that may wait beyond those; one more gets a 429", SERVER,
        8, least=0, most=100_000,
    ),
    Setting(
        "DEFAULT_MAX_TOKENS", "whole", "Most tokens of an answer whose request names no limit",
        SERVER, otherwise="what the context leaves", most=10_000_000,
    ),
    Setting(
        "RESPONSES_KEPT", "whole",
        "Answers of /v1/responses kept in memory for clients that go on from them by id; 0: none",
        SERVER, 1000, least=0, most=100_000,
    ),
    Setting(
        "REQ_TIMEOUT", "decimal",
        "Seconds without progress of one request, on prompt or answer, waiting included; then 504,"
        " or an error in the stream",
        SERVER, 600, least=0.1, most=YEAR_S, unit="seconds",
    ),
    Setting(
        "REQ_TOTAL_TIMEOUT", "decimal", "The same for a whole request, however it goes on", SERVER,
        otherwise="none", most=YEAR_S, unit="seconds",
    ),
    Setting(
        "CONTEXT_MAX", "whole", "Tokens of a prompt and its answer together",
        (*SERVER, DOCTOR, CHECK_MODEL),
        otherwise="what the model's config says", most=100_000_000,
    ),
    Setting(
        "KV_BUDGET_GB", "decimal", "Memory of each rank for KV caches, in GB (10^9 bytes)",
        (*SERVER, DOCTOR, CHECK_MODEL), most=100_000, unit="GB",
        otherwise="70 % of what the model leaves free on that machine, divided by its ranks",
    ),
    Setting(
        "KV_BITS", "choice",
        "Bits of each key and value of layers that attend to all tokens: fewer make room for more"
        " tokens, and answers differ a little. off: as the model computes them",
        (*SERVER, DOCTOR, CHECK_MODEL), "off", choices=("off", "8", "4"),
    ),
    Setting(
        "KV_BITS_FROM", "whole",
        "Tokens from which on a request's keys and values are kept in KV_BITS",
        (*SERVER, DOCTOR, CHECK_MODEL), 0, least=0, most=100_000_000,
    ),
    Setting(
        "PREFIX_CACHE_PERCENT", "whole",
        "Part of the KV memory that may keep prefixes of earlier prompts for reuse; 0: none",
        SERVER, 50, least=0, most=90,
    ),
    Setting(
        "PREFIX_DISK_GB", "decimal",
        "Disk of each rank, in GB (10^9 bytes), that may keep prefixes over a restart; who can read"
        " it can read the prompts. 0: none",
        SERVER, most=1_000_000, unit="GB", otherwise="none",
    ),
    Setting(
        "PREFIX_DISK_DIR", "path", "Their folder, on each host's own disk; for one server alone",
        SERVER, otherwise="~/Library/Caches/mlx-cluster on a Mac, else ~/.cache/mlx-cluster",
    ),
    Setting(
        "PREFIX_WARM", "words",
        "Files on the host of rank 0 whose prompts are computed at the start: the text of a system"
        " prompt, or, in .json and .jsonl, requests of /v1/chat/completions",
        SERVER, otherwise="none", allowed="absolute paths, commas or blanks between",
    ),
    Setting(
        "PREFIX_WARM_WHEN", "choice",
        "Whether these are computed before /health says that the server is ready, or after", SERVER,
        "before", choices=("before", "after"),
    ),
    Setting(
        "PREFIX_SHARING", "choice",
        "Who may go on from kept prefixes: all, or only requests with the same API key (or the same"
        " name of it)",
        SERVER, "all", choices=("all", "key"),
    ),
    Setting(
        "PREFILL_STEP", "whole", "Tokens of a full prefill chunk, as when nothing decodes", SERVER,
        512, least=16, most=65_536,
    ),
    Setting(
        "PREFILL_PAUSE_MS", "decimal",
        "Milliseconds by which a prefill chunk may hold up the requests that decode", SERVER,
        250, least=1, most=60_000, unit="milliseconds",
    ),
    Setting(
        "SPECULATE", "choice",
        "Drafts of the next tokens, several of which a step then computes: auto for as many as pay,"
        " which may be none, or off. No answer is another for it",
        SERVER, "auto", choices=("auto", "off"),
    ),
    Setting(
        "DRAFT_MODEL_DIR", "path",
        "Folder of a small MLX model with MODEL_DIR's tokens, that drafts for it, on the host of"
        " rank 0",
        (*SERVER, DOCTOR, CHECK_MODEL), otherwise="none",
    ),
    Setting(
        "DRAIN_TIMEOUT", "decimal", "Seconds that running requests get when the server is stopped",
        (*SERVER, STOP), 30, least=0, most=YEAR_S, unit="seconds",
    ),
    Setting(
        "RANK_END_TIMEOUT", "decimal",
        "Seconds that a rank gets to leave when it was told to, before SIGKILL",
        (*LAUNCHERS, STOP), otherwise="60 with JACCL, else 5 to 10", least=1, most=YEAR_S,
        unit="seconds",
    ),
    Setting(
        "STALL_TIMEOUT", "decimal",
        "Seconds without progress after which a rank ends itself; up to ten times that where turns"
        " are slow",
        SERVER, 60, least=0.1, most=YEAR_S, unit="seconds",
    ),
    Setting(
        "LOAD_TIMEOUT", "decimal",
        "The same from start until it serves; counted from the last progress",
        SERVER, 900, least=0.1, most=YEAR_S, unit="seconds",
    ),
    Setting(
        "JOIN_TIMEOUT", "decimal",
        "Seconds in which a rank must have started and found the others; then all start again",
        SERVER, 120, least=0.1, most=YEAR_S, unit="seconds",
    ),
    Setting(
        "HANDSHAKE_TIMEOUT", "decimal",
        "Seconds without progress in which ranks that have joined prove their links and compare"
        " what must be the same; then all start again",
        SERVER, 60, least=0.1, most=YEAR_S, unit="seconds",
    ),
    Setting(
        "CANARY_INTERVAL", "decimal", "Seconds of idleness between two canaries; 0: only at start",
        SERVER, 0, least=0, most=YEAR_S, unit="seconds",
    ),
    Setting(
        "LOG_DIR", "path",
        "Where server-<port>.log and requests-<port>.jsonl (one line of JSON a request) go",
        SERVER, otherwise="logs/ in the checkout",
    ),
    Setting(
        "LOG_MAX_MB", "decimal",
        "Size (10^6 bytes) at which either is rotated; 4 older parts are kept; 0: never", SERVER,
        100, least=0, most=1_000_000, unit="MB",
    ),
    Setting(
        "LOG_PROMPTS", "switch", "1 writes prompts and answers to the request log, too", SERVER, 0
    ),
    Setting(
        "LOG_LEVEL", "choice", "How much the ranks say", (*SERVER, BENCH), "INFO",
        choices=("INFO", "DEBUG", "WARNING", "ERROR"),
    ),
    Setting(
        "CLUSTER_PORT", "whole", "TCP port where the ranks meet", LAUNCHERS, 32323,
        otherwise="32323, then others; with --local free ones", least=1024, most=65527,
    ),
    Setting(
        "PYTHON", "program", "Interpreter, the same absolute path on every host", USE_PYTHON,
        otherwise=".venv/bin/python",
    ),
    Setting(
        "ENV_NAME", "text", "Conda environment to take it from, if PYTHON is not set", USE_PYTHON,
        otherwise="none", pattern=r"[A-Za-z0-9_./][A-Za-z0-9_./-]{0,1023}",
        allowed="the name of a conda environment",
    ),
    Setting(
        "CONDA_EXE", "program", "conda itself, for ENV_NAME", USE_PYTHON,
        otherwise="conda on your PATH",
    ),
    Setting(
        "MLX_METAL_FAST_SYNCH", "switch", "1 is faster, but can deadlock", (LAUNCH, *LAUNCHERS),
        otherwise="not set",
    ),
    Setting(
        "SYNC_TIMEOUT", "decimal", "Seconds of silence after which a copy is given up", SYNC,
        120, least=1, most=YEAR_S, unit="seconds",
    ),
    Setting(
        "HF_TOKEN", "text", "For Hugging Face repos that need one",
        (SYNC_MODEL, CHECK_MODEL),
        otherwise="none", secret=True, pattern=r"[!-~]+", allowed="a token of Hugging Face",
    ),
    Setting(
        "HF_ENDPOINT", "text", "Another hub than Hugging Face's", (SYNC_MODEL, CHECK_MODEL),
        otherwise="huggingface.co", pattern=r"https?://[!-~]+", allowed="an http or https URL",
    ),
    Setting(
        "PROTECTION_DOMAINS", "whole",
        "How many a Mac is taken to have for RDMA: a start that could take the last is refused;"
        " 0: none is",
        (LAUNCH, *LAUNCHERS), MOST, least=0, most=100_000,
    ),
    Setting(
        "CLUSTER_ENV", "path", "Another file of settings; /dev/null for none",
        (*SCRIPTS, "bench_serving", "soak"),
        otherwise="cluster.env in the checkout, if it is there",
    ),
    # What the supervisor tells the ranks; no user sets these.
    Setting(
        "SUPERVISOR_RESTARTS", "whole", "Starts after faults", (RANK,), 0, least=0, most=10**9,
        field="restarts",
    ),
    Setting(
        "SUPERVISOR_STARTS_AGAIN", "switch", "1: it is started again after a fault", (RANK,), 0,
        field="supervised",
    ),
    Setting(
        "SUPERVISOR_LAST_FAILURE", "free", "Why it was started again", (RANK,), "",
        field="last_failure",
    ),
)  # fmt: skip

BY_NAME = {setting.name: setting for setting in TABLE}
OF_USERS = tuple(setting for setting in TABLE if setting.readers != (RANK,))
