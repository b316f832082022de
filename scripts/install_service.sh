#!/usr/bin/env bash
# Start the server at boot and keep it running: a service of launchd (macOS) or systemd (Linux).
#
# Usage: install_service.sh [install] [--local N] [--env NAME=VALUE]... [--port P] [--user]
#                           [--dry-run]
#        install_service.sh uninstall [--port P] [--dry-run]
#        install_service.sh status [--port P]
#        install_service.sh --help
#
# Run it on the machine where the server is started (with a hostfile: the Mac of rank 0), as the
# user who may start it there: never with sudo. Set the same variables and give the same options as
# for run_openai_cluster_server.sh, and try them with it first. What is set now goes into
# run/PORT/service.settings, which only you can read; edit it, or install again, to change it.
#
#   install     Write the settings and the unit, and start the service, now and at each boot.
#   uninstall   Stop the server, which drains first, and remove both.
#   status      Is it installed, does it run? (For hosts and ranks: status.sh)
#
#   --local N, --env NAME=VALUE   As for run_openai_cluster_server.sh.
#   --port P    HTTP_PORT: each port has its own service (8080).
#   --user      A service of yours instead of the system's: needs no root. macOS starts it when you
#               log in, not at boot, and asks once whether it may use the local network; systemd
#               starts it at boot if you may linger (loginctl enable-linger).
#   --dry-run   Print the settings, the unit and the commands, and do nothing.
#
# The system's service runs as you, not as root, but to install it takes root: the script says what
# it runs with sudo. On macOS it is a LaunchDaemon: it runs before anybody logs in (with FileVault,
# after the disk was unlocked), and daemons may use the local network without being asked.
#
# At boot it waits until every other host lets it in through ssh, without an ssh agent and with
# no question asked; install looks whether they do. The supervisor starts ranks again after faults.
# When that has given up the service tries three times, a minute apart, then leaves it until the
# next boot, or: sudo systemctl restart mlx-cluster-PORT, or on macOS
# sudo launchctl kickstart -k system/mlx-cluster.server.PORT. A server that was stopped with
# stop_openai_cluster_server.sh stays stopped, and comes back in the same way.
#
# API keys: only API_KEY_FILE, a file with one a line. API_KEY is refused: it would have to be kept
# in a file that was not made for secrets.
#
# Exit codes: 0 done (status: it runs); 1 something failed (status: it is installed and does not
# run); 2 usage; 3 a tool or a file is missing (status: it is not installed).
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=scripts/lib/cluster_env.sh
. "$ROOT/scripts/lib/cluster_env.sh"

DAEMONS=/Library/LaunchDaemons
AGENTS=$HOME/Library/LaunchAgents
SYSTEM_UNITS=/etc/systemd/system
USER_UNITS=$HOME/.config/systemd/user

# Beyond DRAIN_TIMEOUT, for what the supervisor may have to do: end a launcher that is stuck (30 s)
# and clean hosts that do not answer (25 s).
STOP_SLACK_S=60
REMEMBERED="MODEL_DIR MODEL_ID HOSTFILE BACKEND HTTP_HOST HTTP_PORT LOG_DIR
CLUSTER_PORT API_KEY_FILE PYTHON ENV_NAME CONDA_EXE MLX_METAL_FAST_SYNCH OPENBLAS_NUM_THREADS
$SERVER_SETTINGS PATH"

ACTION='' LOCAL='' USER_SERVICE=''
ARGUMENTS=() EXTRA_ENV=()

needs_value() { # OPTION COUNT
  [ "$2" -ge 2 ] || die 2 "$1 needs a value; see --help"
}

parse_arguments() {
  while [ $# -gt 0 ]; do
    case $1 in
      install | uninstall | status)
        [ -z "$ACTION" ] || die 2 "both $ACTION and $1; see --help"
        ACTION=$1
        ;;
      --local)
        needs_value "$1" $#
        LOCAL=$2
        [ -n "$LOCAL" ] || die 2 "--local needs a number of ranks"
        ARGUMENTS+=("$1" "$2")
        shift
        ;;
      --env)
        needs_value "$1" $#
        add_env "$2"
        ARGUMENTS+=("$1" "$2")
        shift
        ;;
      --port)
        needs_value "$1" $#
        HTTP_PORT=$2
        [ -n "$HTTP_PORT" ] || die 2 "--port needs a value; see --help"
        shift
        ;;
      --user) USER_SERVICE=1 ;;
      --dry-run) DRY_RUN=1 ;;
      -h | --help)
        usage
        exit 0
        ;;
      *) die 2 "unknown argument '$1'; see --help" ;;
    esac
    shift
  done
  ACTION=${ACTION:-install}
}

# Sets MANAGER, and for both kinds of service where its unit is: SYSTEM_UNIT, USER_UNIT; and NAME,
# by which the manager knows it.
choose_manager() {
  case $(uname -s) in
    Darwin)
      MANAGER=launchd
      NAME=mlx-cluster.server.$HTTP_PORT
      SYSTEM_UNIT=$DAEMONS/$NAME.plist
      USER_UNIT=$AGENTS/$NAME.plist
      need launchctl "it is part of macOS; is /bin on your PATH?"
      ;;
    *)
      MANAGER=systemd
      NAME=mlx-cluster-$HTTP_PORT.service
      SYSTEM_UNIT=$SYSTEM_UNITS/$NAME
      USER_UNIT=$USER_UNITS/$NAME
      need systemctl "only launchd and systemd are known here; run" \
        "scripts/run_openai_cluster_server.sh from your own service manager"
      ;;
  esac
}

# as_root COMMAND...: says so first.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    run "$@"
  else
    need sudo "the system's service needs root; or use --user"
    tell "this needs root: sudo $*"
    run sudo "$@"
  fi
}

# for_service COMMAND...: as the kind of service needs.
for_service() {
  if [ -n "$USER_SERVICE" ]; then run "$@"; else as_root "$@"; fi
}

# systemctl or launchctl, for the kind of service in hand.
control() {
  if [ -n "$USER_SERVICE" ]; then systemctl --user "$@"; else systemctl "$@"; fi
}

domain() {
  if [ -n "$USER_SERVICE" ]; then printf 'gui/%s\n' "$(id -u)"; else printf 'system\n'; fi
}

# find_installed: sets UNIT to the unit that is there and USER_SERVICE to its kind; fails if none.
find_installed() {
  for UNIT in "$SYSTEM_UNIT" "$USER_UNIT"; do
    [ -f "$UNIT" ] || continue
    USER_SERVICE=
    [ "$UNIT" != "$USER_UNIT" ] || USER_SERVICE=1
    return 0
  done
  return 1
}

# ------------------------------------------------------------------ install

refuse_secrets() {
  if [ -n "${API_KEY-}" ]; then
    die 2 "API_KEY is set: a service would have to keep it in its settings. Put the keys into a" \
      "file, one a line, that only you can read, and set API_KEY_FILE=/path/to/it instead"
  fi
}

check_user() {
  if [ -n "${SUDO_USER-}" ] && [ "$(id -u)" = 0 ]; then
    die 2 "run it as $SUDO_USER, without sudo: the service runs as the user who installs it, and" \
      "the script asks for root itself where it needs it"
  fi
}

check_key_file() {
  [ -n "${API_KEY_FILE-}" ] || return 0
  API_KEY_FILE=$(absolute_path "$API_KEY_FILE")
  [ "$RANK0" = 127.0.0.1 ] || return 0 # Rank 0 reads it there; the run script looks.
  [ -r "$API_KEY_FILE" ] || bad_setting API_KEY_FILE "a file that can be read, with one key a line"
  case $(ls -lL "$API_KEY_FILE") in
    -rw-------* | -r--------*) ;;
    *) warn "others can read $API_KEY_FILE: chmod 600 $(quote "$API_KEY_FILE")" ;;
  esac
}

# Every path from the root: the service begins elsewhere.
make_absolute() {
  local name
  for name in MODEL_DIR LOG_DIR HOSTFILE; do
    [ -z "${!name-}" ] || printf -v "$name" '%s' "$(absolute_path "${!name}")"
  done
  [ -z "${PYTHON-}" ] || PYTHON=$PY
  if [ -n "${ENV_NAME-}" ]; then CONDA_EXE=$(command -v "${CONDA_EXE:-conda}"); fi
}

# What the run script would say to these settings, before a service says it to nobody.
try_settings() {
  local name command
  command=(env)
  for name in $REMEMBERED; do
    [ -z "${!name-}" ] || command+=("$name=${!name}")
  done
  "${command[@]}" "$ROOT/scripts/run_openai_cluster_server.sh" --dry-run \
    ${ARGUMENTS[@]+"${ARGUMENTS[@]}"} >/dev/null ||
    die "$?" "run_openai_cluster_server.sh would not start with these settings"
}

# At boot there is no ssh agent, no keychain that somebody has unlocked, and nobody to ask.
try_ssh() {
  local host problem bare
  while IFS= read -r host; do
    [ "$host" != 127.0.0.1 ] || continue
    host_command "$host" true
    bare=("${HOST_COMMAND[0]}" -o IdentityAgent=none -o IgnoreUnknown=UseKeychain -o UseKeychain=no
      "${HOST_COMMAND[@]:1}")
    if [ -n "$DRY_RUN" ]; then
      show "${bare[@]}"
      continue
    fi
    problem=$("${bare[@]}" 2>&1 </dev/null) && continue
    if on_host "$host" true >/dev/null 2>&1; then
      die 1 "$host lets you in with your ssh agent or keychain alone, and a service has neither:" \
        "make it accept a key without a passphrase (ssh-keygen, ssh-copy-id $host)"
    fi
    warn "$host cannot be reached now (${problem##*$'\n'}): the service will wait for it"
  done <<<"$(printf '%s\n' "$HOSTS" | awk '!seen[$0]++')"
}

# One server a port, and one checkout a service.
check_free() {
  local owner
  if find_installed_elsewhere; then
    owner=$("$ANY_PYTHON" "$ROOT/scripts/lib/service_unit.py" settings-of "$UNIT") ||
      die 1 "$UNIT is there and not ours: move it away, or use another --port"
    [ "$owner" = "$SETTINGS" ] ||
      die 1 "$UNIT belongs to another checkout (${owner%/run/*}): uninstall it there, or use" \
        "another --port"
    if [ "$UNIT" != "$TARGET" ]; then
      die 1 "$UNIT is installed: uninstall it first"
    fi
  elif ours "$RUN_DIR/supervisor.pid"; then
    die 1 "a server runs on port $HTTP_PORT already (pid $OURS_PID), and not as a service: stop it" \
      "first: HTTP_PORT=$HTTP_PORT scripts/stop_openai_cluster_server.sh"
  fi
}

# As find_installed, but leaves the kind that was asked for.
find_installed_elsewhere() {
  local kind=$USER_SERVICE status=0
  find_installed || status=1
  USER_SERVICE=$kind
  return "$status"
}

print_settings() {
  local name word
  printf '# Settings of the service of port %s: NAME=VALUE, taken as they stand.\n' "$HTTP_PORT"
  for name in $REMEMBERED; do
    [ -z "${!name-}" ] || printf '%s=%s\n' "$name" "${!name}"
  done
  for word in ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}; do
    printf 'ARGUMENT=%s\n' "$word"
  done
}

check_one_line() {
  local name word
  for name in $REMEMBERED; do
    case ${!name-} in
      *$'\n'*) die 2 "$name holds a line break, which a settings file cannot" ;;
    esac
  done
  for word in ${ARGUMENTS[@]+"${ARGUMENTS[@]}"}; do
    case $word in
      *$'\n'*) die 2 "--env holds a line break, which a settings file cannot" ;;
    esac
  done
}

print_unit() {
  local drain options
  drain=$(awk -v s="${DRAIN_TIMEOUT:-30}" 'BEGIN { print int(s) + (s > int(s)) }')
  options=(--port "$HTTP_PORT" --python "$ANY_PYTHON" --settings "$SETTINGS"
    --stop-within "$((drain + STOP_SLACK_S))" --log "$SERVICE_LOG")
  [ -n "$USER_SERVICE" ] || options+=(--user "$(id -un)")
  "$ANY_PYTHON" "$ROOT/scripts/lib/service_unit.py" "$MANAGER" "${options[@]}"
}

install_launchd() {
  # bootout returns before the old server has drained.
  if launchctl print "$(domain)/$NAME" >/dev/null 2>&1; then
    for_service launchctl bootout "$(domain)/$NAME" || true
    wait_until_unloaded
  fi
  for_service launchctl enable "$(domain)/$NAME" &&
    for_service launchctl bootstrap "$(domain)" "$TARGET"
}

wait_until_unloaded() {
  [ -z "$DRY_RUN" ] || return 0
  local waited=0 drain
  drain=$(awk -v s="${DRAIN_TIMEOUT:-30}" 'BEGIN { print int(s) + (s > int(s)) }')
  while launchctl print "$(domain)/$NAME" >/dev/null 2>&1; do
    [ "$waited" -lt "$(((drain + STOP_SLACK_S) * 5))" ] || die 1 "the service does not stop"
    [ "$((waited % 50))" != 49 ] || log "waiting for the server to drain, $(((waited + 1) / 5)) s"
    sleep 0.2
    waited=$((waited + 1))
  done
}

install_systemd() {
  local scope
  scope=()
  [ -z "$USER_SERVICE" ] || scope=(--user)
  # restart and not start: a service that was there has to take the new settings.
  for_service systemctl ${scope[@]+"${scope[@]}"} daemon-reload &&
    for_service systemctl ${scope[@]+"${scope[@]}"} enable "$NAME" &&
    for_service systemctl ${scope[@]+"${scope[@]}"} restart "$NAME" || return 1
  if [ -n "$USER_SERVICE" ]; then
    run loginctl enable-linger "$(id -un)" ||
      warn "without lingering it ends when you log out: sudo loginctl enable-linger $(id -un)"
  fi
}

install() {
  refuse_secrets
  check_user
  local backend=${BACKEND-}
  choose_python
  choose_hosts
  choose_any_python
  BACKEND=$backend # What the hostfile says must not be kept: it may change.
  check_key_file
  make_absolute
  check_one_line
  SETTINGS=$RUN_DIR/service.settings
  SERVICE_LOG=${LOG_DIR:-$ROOT/logs}/service-$HTTP_PORT.log
  TARGET=$SYSTEM_UNIT
  [ -z "$USER_SERVICE" ] || TARGET=$USER_UNIT
  try_settings
  check_free
  try_ssh

  if [ -n "$DRY_RUN" ]; then
    printf '\n%s (mode 600):\n' "$SETTINGS"
    print_settings
    printf '\n%s:\n' "$TARGET"
    print_unit
    printf '\n'
  fi
  SCRATCH=$(mktemp -d)
  trap 'rm -rf "$SCRATCH"' EXIT
  print_unit >"$SCRATCH/unit"
  if [ "$MANAGER" = launchd ] && command -v plutil >/dev/null 2>&1; then
    plutil -lint "$SCRATCH/unit" >/dev/null || die 1 "plutil refuses the unit; please report this"
  fi
  if [ -z "$DRY_RUN" ]; then
    mkdir -p "$RUN_DIR" "${LOG_DIR:-$ROOT/logs}"
    (umask 077 && print_settings >"$SETTINGS.new")
    mv -f "$SETTINGS.new" "$SETTINGS"
    : >>"$SERVICE_LOG" # Made here so that it is ours, whoever opens it.
  fi
  for_service mkdir -p "${TARGET%/*}"
  for_service cp "$SCRATCH/unit" "$TARGET"
  for_service chmod 644 "$TARGET"
  "install_$MANAGER" || die 1 "the service could not be started; its unit is $TARGET"
  [ -z "$DRY_RUN" ] || return 0
  log "installed $NAME; it starts now and ${USER_SERVICE:+for you }at every boot"
  tell_next
}

tell_next() {
  cat <<TEXT

Is it ready?    scripts/status.sh --port $HTTP_PORT --watch 2
Its log:        scripts/logs.sh --port $HTTP_PORT -f
The service:    scripts/install_service.sh status --port $HTTP_PORT
What it says:   $(words_of_service)
Settings:       $SETTINGS
Remove it:      scripts/install_service.sh uninstall --port $HTTP_PORT
TEXT
}

words_of_service() {
  if [ "$MANAGER" = launchd ]; then
    printf 'tail %s\n' "$(quote "$SERVICE_LOG")"
  else
    printf 'journalctl %s%s\n' "${USER_SERVICE:+--user }" "-u $NAME"
  fi
}

# ---------------------------------------------------- uninstall and status

uninstall() {
  if ! find_installed; then
    log "there is no service of port $HTTP_PORT"
    return 0
  fi
  choose_python
  choose_any_python
  local owner
  owner=$("$ANY_PYTHON" "$ROOT/scripts/lib/service_unit.py" settings-of "$UNIT") ||
    die 1 "$UNIT is not ours; nothing was removed"
  [ "$owner" = "$RUN_DIR/service.settings" ] ||
    die 1 "$UNIT belongs to another checkout: uninstall it there (${owner%/run/*})"
  check_user
  tell "stopping $NAME; running requests may finish"
  if [ "$MANAGER" = launchd ]; then
    if launchctl print "$(domain)/$NAME" >/dev/null 2>&1; then
      for_service launchctl bootout "$(domain)/$NAME" || true
      wait_until_unloaded
    fi
    for_service rm -f "$UNIT"
  else
    local scope
    scope=()
    [ -z "$USER_SERVICE" ] || scope=(--user)
    for_service systemctl ${scope[@]+"${scope[@]}"} disable --now "$NAME" ||
      die 1 "$NAME could not be stopped; nothing was removed"
    for_service rm -f "$UNIT"
    for_service systemctl ${scope[@]+"${scope[@]}"} daemon-reload
  fi
  run rm -f "$owner" "${owner%.settings}.says"
  tell "removed $NAME"
}

# status: what the manager says of it, in one line.
status() {
  if ! find_installed; then
    printf 'not installed: there is no service of port %s\n' "$HTTP_PORT"
    return 3
  fi
  local state pid code told
  if [ "$MANAGER" = launchd ]; then
    told=$(launchctl print "$(domain)/$NAME" 2>/dev/null) || told=''
    state=$(printf '%s\n' "$told" | awk '$1 == "state" { print $3; exit }')
    pid=$(printf '%s\n' "$told" | awk '$1 == "pid" { print $3; exit }')
    code=$(printf '%s\n' "$told" | awk '/last exit code/ { print $NF; exit }')
    [ -n "$told" ] || state="not loaded"
  else
    told=$(control show -p ActiveState -p MainPID -p ExecMainStatus "$NAME" 2>/dev/null) || told=''
    state=$(printf '%s\n' "$told" | sed -n 's/^ActiveState=//p')
    pid=$(printf '%s\n' "$told" | sed -n 's/^MainPID=//p')
    code=$(printf '%s\n' "$told" | sed -n 's/^ExecMainStatus=//p')
    [ "$state" != active ] || state=running
  fi
  [ "${pid:-0}" != 0 ] || pid=
  printf '%s: %s%s%s\nunit:     %s\nsettings: %s\n' "$NAME" "${state:-unknown}" \
    "${pid:+, pid $pid}" "${code:+, last exit code $code}" "$UNIT" "$RUN_DIR/service.settings"
  if [ "$state" != running ]; then
    log "it does not run; why: $(SERVICE_LOG=$ROOT/logs/service-$HTTP_PORT.log words_of_service)"
    return 1
  fi
  printf 'the server: scripts/status.sh --port %s\n' "$HTTP_PORT"
}

main() {
  parse_arguments "$@"
  check_settings
  HTTP_PORT=${HTTP_PORT:-8080}
  RUN_DIR=$ROOT/run/$HTTP_PORT
  choose_manager
  "$ACTION"
}

main "$@"
