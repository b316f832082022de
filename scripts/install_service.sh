#!/usr/bin/env bash
# Start the server at boot and keep it running: a service of launchd (macOS) or systemd (Linux).
#
# Usage: install_service.sh [install] [--local N | --hostfile FILE] [--env NAME=VALUE]... [--port P]
#                           [--user] [--dry-run]
#        install_service.sh uninstall [--port P] [--dry-run]
#        install_service.sh status [--port P]
#        install_service.sh --help
#
# Run it on the machine where the server is started (with a hostfile: the Mac of rank 0), as the
# user who may start it there: never with sudo. Set the same variables and give the same options as
# for run_openai_cluster_server.sh, and try them with it first. What the environment has now goes into
# run/PORT/service.settings, which only you can read; edit it, or install again, to change it.
# cluster.env is read anew at each start, but for what the unit depends on, which is kept, too:
# HTTP_PORT, HTTP_HOST, HOSTFILE, LOG_DIR, DRAIN_TIMEOUT, RANK_END_TIMEOUT.
#
#   install     Write the settings and the unit, and start the service, now and at each boot.
#   uninstall   Stop the server, which drains first, and remove both.
#   status      Is it installed, does it run? (For hosts and ranks: status.sh)
#
#   --local N, --hostfile FILE, --env NAME=VALUE   As for run_openai_cluster_server.sh.
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
# sudo launchctl bootout system/mlx-cluster.server.PORT, and when that has drained and ended it,
# sudo launchctl bootstrap system /Library/LaunchDaemons/mlx-cluster.server.PORT.plist (kickstart -k
# is SIGKILL). A server that was stopped with stop_openai_cluster_server.sh stays stopped, and comes
# back in the same way.
#
# API keys: API_KEY_FILE, a file with one a line, or API_KEY in cluster.env. API_KEY of the environment
# is refused: it would have to be kept in a file that was not made for secrets.
#
# Exit codes: 0 done (status: it runs); 1 something failed (status: it is installed and does not
# run); 2 usage; 3 a tool or a file is missing (status: it is not installed).
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=scripts/lib/cluster_env.sh
. "$ROOT/scripts/lib/cluster_env.sh"
# shellcheck source=scripts/lib/service/service_managers.sh
. "$ROOT/scripts/lib/service/service_managers.sh"

# Whatever says so: the unit, or what waits for the hosts at boot, is made from these.
UNIT_NEEDS="HTTP_PORT HTTP_HOST HOSTFILE LOG_DIR DRAIN_TIMEOUT RANK_END_TIMEOUT"

ACTION='' LOCAL='' USER_SERVICE=''
TAKES_WORDS=1
ARGUMENTS=()

take_word() {
  case $1 in
    install | uninstall | status) ;;
    *) die 2 "'$1': must be install, uninstall or status" ;;
  esac
  [ -z "$ACTION" ] || die 2 "both $ACTION and $1; see --help"
  ACTION=$1
}

take_option() {
  case $1 in
    --user) USER_SERVICE=1 ;;
  esac
}

# -- install

refuse_secrets() {
  look_up API_KEY
  if [ "$ORIGIN" = environment ]; then
    die 2 "API_KEY is set: a service would have to keep it in its settings. Put the keys into a" \
      "file, one a line, that only you can read, and set API_KEY_FILE=/path/to/it instead"
  fi
}

# choose_remembered: sets REMEMBERED, the names that go into the service's settings if they are set.
choose_remembered() {
  local i
  REMEMBERED=''
  for ((i = 0; i < ${#SETTING_NAMES[@]}; i++)); do
    case "${SETTING_PLACES[i]} ${SETTING_ORIGINS[i]}" in
      secret*) continue ;;
      *' default' | *' environment' | *' --env') ;;
      *)
        case " $UNIT_NEEDS " in *" ${SETTING_NAMES[i]} "*) ;; *) continue ;; esac
        ;;
    esac
    REMEMBERED="$REMEMBERED ${SETTING_NAMES[i]}"
  done
  # A service has an environment of its own, so where it finds programs and settings, too.
  REMEMBERED="$REMEMBERED CLUSTER_ENV OPENBLAS_NUM_THREADS PATH"
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
  for name in MODEL_DIR MODELS_DIR LOG_DIR HOSTFILE CLUSTER_ENV; do
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

# macOS asks nobody at boot: what a service may not read or reach fails then, and well in Terminal.
warn_of_privacy() {
  [ "$MANAGER" = launchd ] || return 0
  case $ROOT/ in
    "$HOME/Documents/"* | "$HOME/Desktop/"* | "$HOME/Downloads/"* | "$HOME/Library/Mobile Documents/"* | /Volumes/*)
      warn "macOS keeps services from $ROOT: move the checkout, such as to ~/mlx-cluster"
      ;;
  esac
  if [ -n "$USER_SERVICE" ] && printf '%s\n' "$HOSTS" | grep -qvx 127.0.0.1; then
    warn "macOS keeps an agent (--user) from the local network until it is allowed there: System" \
      "Settings, Privacy & Security, Local Network; without --user it is not"
  fi
}

# One server a port, and one checkout a service.
check_free() {
  local owner
  if find_installed; then
    owner=$("$ANY_PYTHON" "$ROOT/scripts/lib/module.py" lib.service.service_unit settings-of "$UNIT") ||
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
  local options
  options=(--port "$HTTP_PORT" --python "$ANY_PYTHON" --settings "$SETTINGS"
    --stop-within "$(stop_seconds "$DRAIN_TIMEOUT" "$END_S")" --log "$SERVICE_LOG")
  [ -n "$USER_SERVICE" ] || options+=(--user "$(id -un)")
  "$ANY_PYTHON" "$ROOT/scripts/lib/module.py" lib.service.service_unit "$MANAGER" "${options[@]}"
}

install() {
  refuse_secrets
  choose_remembered
  check_user
  local backend=${BACKEND-}
  choose_python
  choose_hosts
  choose_any_python
  END_S=${RANK_END_TIMEOUT-}
  case $BACKEND in jaccl*) : "${END_S:=$RDMA_END_S}" ;; esac
  BACKEND=$backend # What the hostfile says must not be kept: it may change.
  check_key_file
  make_absolute
  use_default DRAIN_TIMEOUT
  check_one_line
  SETTINGS=$RUN_DIR/service.settings
  SERVICE_LOG=${LOG_DIR:-$ROOT/logs}/service-$HTTP_PORT.log
  TARGET=$SYSTEM_UNIT
  [ -z "$USER_SERVICE" ] || TARGET=$USER_UNIT
  try_settings
  check_free
  try_ssh
  warn_of_privacy

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
  "install_$MANAGER" "$TARGET" || die 1 "the service could not be started; its unit is $TARGET"
  [ -z "$DRY_RUN" ] || return 0
  local when="at every boot"
  [ "$MANAGER$USER_SERVICE" != launchd1 ] || when="whenever you log in"
  log "installed $NAME; it starts now and $when"
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

# -- uninstall and status

# use_installed: takes the kind of service that is there for the one that is meant.
use_installed() {
  find_installed || return 1
  USER_SERVICE=
  [ "$UNIT_KIND" = system ] || USER_SERVICE=1
}

uninstall() {
  if ! use_installed; then
    log "there is no service of port $HTTP_PORT"
    return 0
  fi
  choose_python
  choose_any_python
  local owner
  owner=$("$ANY_PYTHON" "$ROOT/scripts/lib/module.py" lib.service.service_unit settings-of "$UNIT") ||
    die 1 "$UNIT is not ours; nothing was removed"
  [ "$owner" = "$RUN_DIR/service.settings" ] ||
    die 1 "$UNIT belongs to another checkout: uninstall it there (${owner%/run/*})"
  check_user
  tell "stopping $NAME; running requests may finish"
  "remove_$MANAGER" "$UNIT" || die 1 "$NAME could not be stopped; nothing was removed"
  run rm -f "$owner" "${owner%.settings}.says"
  tell "removed $NAME"
}

# status: what the manager says of it, in one line.
status() {
  if ! use_installed; then
    printf 'not installed: there is no service of port %s\n' "$HTTP_PORT"
    return 3
  fi
  "ask_$MANAGER"
  printf '%s: %s%s%s\nunit:     %s\nsettings: %s\n' "$NAME" "${STATE:-unknown}" \
    "${PID:+, pid $PID}" "${CODE:+, last exit code $CODE}" "$UNIT" "$RUN_DIR/service.settings"
  if [ "$STATE" != running ]; then
    SERVICE_LOG=$(sed -n 's/^LOG_DIR=//p' "$RUN_DIR/service.settings" 2>/dev/null) || true
    SERVICE_LOG=${SERVICE_LOG:-$ROOT/logs}/service-$HTTP_PORT.log
    log "it does not run; why: $(words_of_service)"
    return 1
  fi
  printf 'the server: scripts/status.sh --port %s\n' "$HTTP_PORT"
}

main() {
  local word
  read_options "$@"
  ACTION=${ACTION:-install}
  # As they go on to the run script, at each start of the service.
  [ -z "$LOCAL" ] || ARGUMENTS+=(--local "$LOCAL")
  for word in ${EXTRA_ENV[@]+"${EXTRA_ENV[@]}"}; do
    ARGUMENTS+=(--env "$word")
  done
  check_settings
  use_default HTTP_PORT
  RUN_DIR=$ROOT/run/$HTTP_PORT
  choose_manager
  "$ACTION"
}

main "$@"
