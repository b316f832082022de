# What install_service.sh writes, what it refuses, and what it asks launchd and systemd to do.

setup() {
  load helper
  make_checkout
  stub_python
  INSTALL=$CHECKOUT/scripts/install_service.sh
  SYSTEM=$BATS_TEST_TMPDIR/system
  HOME=$BATS_TEST_TMPDIR/home
  export HOME SYSTEM
  mkdir -p "$HOME" "$SYSTEM"
  managers=scripts/lib/service/service_managers.sh
  sed "s,^DAEMONS=.*,DAEMONS=$SYSTEM,; s,^SYSTEM_UNITS=.*,SYSTEM_UNITS=$SYSTEM," \
    "$REPO/$managers" >"$CHECKOUT/$managers"
  SETTINGS=$RUN_DIR/service.settings
  unset SUDO_USER
  # It is asked what it thinks of the settings; where that matters the real one is put back.
  printf '#!/usr/bin/env bash\nexit 0\n' >"$RUN"
  # python runs the parts that need no package; a user called alice; sudo that runs it.
  PYTHON=$(real_python)
  export PYTHON
  stub id <<'STUB'
case $1 in -u) echo "${STUB_UID:-1000}" ;; -un) echo alice ;; esac
STUB
  stub sudo <<'STUB'
exec "$@"
STUB
  stub_systemd
  MODEL=$BATS_TEST_TMPDIR/model
  mkdir -p "$MODEL"
}

teardown() {
  end_processes
}

# systemctl whose `show` prints $SYSTEM/state.
stub_systemd() {
  stub uname <<'STUB'
echo Linux
STUB
  stub systemctl <<'STUB'
case " $* " in
  *" show "*) cat "$SYSTEM/state" 2>/dev/null ;;
esac
exit "${SYSTEMCTL_CODE:-0}"
STUB
  stub loginctl </dev/null
}

# launchctl that knows what it was given, and takes a moment to forget it.
stub_launchd() {
  stub uname <<'STUB'
echo Darwin
STUB
  stub plutil </dev/null
  stub launchctl <<'STUB'
case $1 in
  print)
    [ -e "$SYSTEM/loaded" ] || exit 113
    if [ "$(cat "$SYSTEM/loaded")" = leaving ]; then rm "$SYSTEM/loaded"; fi
    if [ -e "$SYSTEM/gave_up" ]; then
      printf 'x = {\n\tstate = not running\n\tlast exit code = 78: EX_CONFIG\n}\n'
    else
      printf 'x = {\n\tstate = running\n\tpid = 4711\n\tlast exit code = (never exited)\n'
      printf '\tpart = {\n\t\tstate = active\n\t}\n}\n'
    fi
    ;;
  bootstrap) echo here >"$SYSTEM/loaded" ;;
  bootout) echo leaving >"$SYSTEM/loaded" ;;
esac
STUB
}

# lacks PLACE PATTERN: no line of this file, or of those in this folder, matches.
lacks() {
  if grep -rn -- "$2" "$1"; then return 1; fi
}

install_local() {
  MODEL_DIR=$MODEL run "$INSTALL" "$@"
}

@test "--help prints the header; bad arguments are usage errors" {
  run "$INSTALL" --help
  [ "$status" -eq 0 ]
  says "Usage: install_service.sh"
  for arguments in "start" "install uninstall" "--port" "--port 0" "--local" "--local 9" "--env A"; do
    # shellcheck disable=SC2086  # split on purpose
    run "$INSTALL" $arguments
    [ "$status" -eq 2 ] || { echo "$arguments: $status"; return 1; }
  done
  [ ! -e "$SETTINGS" ]
}

@test "systemd: settings only we can read, a unit without any, enabled and started" {
  cp "$REPO/scripts/run_openai_cluster_server.sh" "$RUN"
  QUEUE_MAX=3 install_local --local 2 --env "A=b c"
  [ "$status" -eq 0 ]
  says "this needs root: sudo cp"
  says "scripts/status.sh --port 18431"
  case $(ls -l "$SETTINGS") in -rw-------*) ;; *) ls -l "$SETTINGS"; return 1 ;; esac
  grep -qx "MODEL_DIR=$MODEL" "$SETTINGS"
  grep -qx "HTTP_PORT=18431" "$SETTINGS"
  grep -qx "QUEUE_MAX=3" "$SETTINGS"
  grep -qx "PATH=$PATH" "$SETTINGS"
  [ "$(grep ^ARGUMENT= "$SETTINGS")" = "ARGUMENT=--local
ARGUMENT=2
ARGUMENT=--env
ARGUMENT=A=b c" ]
  lacks "$SETTINGS" ^BACKEND=
  unit=$SYSTEM/mlx-cluster-18431.service
  grep -qx "User=alice" "$unit"
  grep -qx "TimeoutStopSec=90" "$unit"
  lacks "$unit" QUEUE_MAX
  called "systemctl daemon-reload"
  called "systemctl enable mlx-cluster-18431.service"
  called "systemctl restart mlx-cluster-18431.service"
}

@test "systemd: a service of the user's needs no root and may linger" {
  DRAIN_TIMEOUT=2.5 install_local --local 1 --user
  [ "$status" -eq 0 ]
  unit=$HOME/.config/systemd/user/mlx-cluster-18431.service
  grep -qx "TimeoutStopSec=63" "$unit"
  lacks "$unit" ^User=
  called "systemctl --user restart mlx-cluster-18431.service"
  called "loginctl enable-linger alice"
  lacks "$CALLS" ^sudo
}

@test "launchd: a daemon that runs as the user, loaded into the system" {
  stub_launchd
  install_local --local 2
  [ "$status" -eq 0 ]
  unit=$SYSTEM/mlx-cluster.server.18431.plist
  "$PYTHON" -c 'import plistlib, sys
unit = plistlib.load(open(sys.argv[1], "rb"))
assert unit["UserName"] == "alice", unit
assert unit["ProgramArguments"][1].startswith(sys.argv[2]), unit
assert unit["ProgramArguments"][2] == "lib.service.service_run", unit
assert unit["ProgramArguments"][3] == sys.argv[3], unit
assert unit["ExitTimeOut"] == 90, unit' "$unit" "$CHECKOUT/" "$SETTINGS"
  called "plutil -lint"
  called "launchctl enable system/mlx-cluster.server.18431"
  called "launchctl bootstrap system $unit"
  [ -f "$CHECKOUT/logs/service-18431.log" ]
}

@test "launchd: installed again, the old server drains before the new one is loaded" {
  stub_launchd
  install_local --local 2
  install_local --local 1
  [ "$status" -eq 0 ]
  sequence=$(grep -o '^launchctl [a-z]*' "$CALLS" | tr '\n' ' ')
  case $sequence in
    *"launchctl bootout launchctl print launchctl print launchctl enable launchctl bootstrap ") ;;
    *) echo "$sequence"; return 1 ;;
  esac
  grep -qx "ARGUMENT=1" "$SETTINGS"
}

@test "launchd: an agent of the user's goes into the user's session" {
  stub_launchd
  install_local --local 2 --user
  [ "$status" -eq 0 ]
  [ -f "$HOME/Library/LaunchAgents/mlx-cluster.server.18431.plist" ]
  called "launchctl bootstrap gui/1000 $HOME/Library"
  lacks "$CALLS" ^sudo
}

@test "launchd: what macOS will keep from the service is told" {
  stub_launchd
  stub_ssh
  install_local --local 2 --user
  case $output in *"macOS keeps"*) echo "$output"; return 1 ;; esac
  run "$INSTALL" uninstall
  hostfile studio.local.json
  install_local --user
  [ "$status" -eq 0 ]
  says "macOS keeps an agent (--user) from the local network"
  mkdir -p "$HOME/Documents"
  mv "$CHECKOUT" "$HOME/Documents/checkout"
  INSTALL=$HOME/Documents/checkout/scripts/install_service.sh
  HTTP_PORT=18432 install_local --local 2 --dry-run
  [ "$status" -eq 0 ]
  says "macOS keeps services from $HOME/Documents/checkout"
}

@test "a key in the environment is refused, a file with keys is taken" {
  API_KEY=sk-secret install_local --local 2
  [ "$status" -eq 2 ]
  says "API_KEY is set: a service would have to keep it"
  lacks "$SYSTEM" sk-secret
  lacks "$CALLS" sk-secret
  [ ! -e "$CHECKOUT/run" ]
  API_KEY_FILE=$BATS_TEST_TMPDIR/none install_local --local 2
  [ "$status" -eq 2 ]
  says "API_KEY_FILE='$BATS_TEST_TMPDIR/none': must be"
  cd "$BATS_TEST_TMPDIR"
  echo sk-secret >keys
  chmod 644 keys
  API_KEY_FILE=keys install_local --local 2
  [ "$status" -eq 0 ]
  says "warning: others can read $BATS_TEST_TMPDIR/keys: chmod 600"
  grep -qx "API_KEY_FILE=$BATS_TEST_TMPDIR/keys" "$SETTINGS"
  lacks "$CHECKOUT/run" sk-secret
  lacks "$SYSTEM" sk-secret
}

@test "settings that the run script refuses are not installed" {
  cp "$REPO/scripts/run_openai_cluster_server.sh" "$RUN"
  QUEUE_MAX=many install_local --local 2
  [ "$status" -eq 2 ]
  hostfile studio.local.json
  run "$INSTALL"
  [ "$status" -eq 2 ]
  says "MODEL_DIR is not set"
  says "would not start with these settings"
  MODEL_DIR="$MODEL
x" run "$INSTALL" --local 2
  [ "$status" -eq 2 ]
  [ ! -e "$SETTINGS" ]
  [ -z "$(ls "$SYSTEM")" ]
}

@test "with sudo it is refused, since the service would be root's" {
  STUB_UID=0 SUDO_USER=bob install_local --local 2
  [ "$status" -eq 2 ]
  says "run it as bob, without sudo"
}

@test "a host that only the agent's key opens is refused, one that is down is waited for" {
  stub_ssh
  hostfile studio.local.json
  mkdir -p "$REMOTE/mac0" "$REMOTE/mac1"
  touch "$REMOTE/mac1/down"
  install_local
  [ "$status" -eq 0 ]
  says "warning: mac1 cannot be reached now"
  grep -qx "HOSTFILE=$CHECKOUT/hostfiles/studio.local.json" "$SETTINGS"
  lacks "$SETTINGS" ^BACKEND=
  stub ssh <<'STUB'
case " $* " in *" IdentityAgent=none "*) echo "Permission denied (publickey)." >&2; exit 255 ;; esac
STUB
  install_local
  [ "$status" -eq 1 ]
  says "mac0 lets you in with your ssh agent or keychain alone"
}

@test "a server that runs already, and another checkout's service, are not disturbed" {
  start_process some-run "$RUN_DIR/supervisor.pid"
  install_local --local 2
  [ "$status" -eq 1 ]
  says "a server runs on port 18431 already (pid $PROCESS), and not as a service"
  rm "$RUN_DIR/supervisor.pid"
  unit=$SYSTEM/mlx-cluster-18431.service
  printf '# settings: /other/run/18431/service.settings\n[Unit]\n' >"$unit"
  for action in install uninstall; do
    install_local "$action"
    [ "$status" -ne 0 ]
  done
  install_local --local 2
  [ "$status" -eq 1 ]
  says "belongs to another checkout (/other)"
  echo "[Unit]" >"$unit"
  install_local --local 2
  [ "$status" -eq 1 ]
  says "$unit is there and not ours"
  run "$INSTALL" uninstall
  [ "$status" -eq 1 ]
  says "not ours; nothing was removed"
  [ -f "$unit" ]
}

@test "a service of the other kind must go first" {
  install_local --local 2 --user
  [ "$status" -eq 0 ]
  install_local --local 2
  [ "$status" -eq 1 ]
  says "is installed: uninstall it first"
}

@test "a manager that fails is a failure" {
  SYSTEMCTL_CODE=1 install_local --local 2
  [ "$status" -eq 1 ]
  says "the service could not be started; its unit is $SYSTEM/mlx-cluster-18431.service"
}

@test "--dry-run prints settings, unit and commands, and does nothing" {
  install_local --local 2 --dry-run
  [ "$status" -eq 0 ]
  says "ARGUMENT=--local"
  says "KillMode=mixed"
  says "+ sudo systemctl restart mlx-cluster-18431.service"
  [ ! -e "$CHECKOUT/run" ]
  [ -z "$(ls "$SYSTEM")" ]
  lacks "$CALLS" "^systemctl"
  lacks "$CALLS" ^sudo
  stub_launchd
  install_local --local 2 --dry-run
  says "<key>ExitTimeOut</key>"
  says "+ sudo launchctl bootstrap system"
}

@test "uninstall stops it and removes unit and settings; twice is no error" {
  install_local --local 2
  run "$INSTALL" uninstall --dry-run
  says "+ sudo systemctl disable --now mlx-cluster-18431.service"
  [ -e "$SETTINGS" ]
  run "$INSTALL" uninstall
  [ "$status" -eq 0 ]
  says "removed mlx-cluster-18431.service"
  called "systemctl disable --now mlx-cluster-18431.service"
  [ ! -e "$SETTINGS" ]
  [ -z "$(ls "$SYSTEM")" ]
  run "$INSTALL" uninstall
  [ "$status" -eq 0 ]
  says "there is no service of port 18431"
}

@test "launchd: uninstall waits until the server has drained" {
  stub_launchd
  install_local --local 2
  run "$INSTALL" uninstall
  [ "$status" -eq 0 ]
  called "launchctl bootout system/mlx-cluster.server.18431"
  [ ! -e "$SYSTEM/loaded" ]
  [ ! -e "$SYSTEM/mlx-cluster.server.18431.plist" ]
}

@test "status tells whether it is installed and runs" {
  run "$INSTALL" status
  [ "$status" -eq 3 ]
  says "not installed: there is no service of port 18431"
  install_local --local 2
  printf 'MainPID=4711\nExecMainStatus=0\nActiveState=active\n' >"$SYSTEM/state"
  run "$INSTALL" status
  [ "$status" -eq 0 ]
  says "mlx-cluster-18431.service: running, pid 4711"
  printf 'MainPID=0\nExecMainStatus=78\nActiveState=failed\n' >"$SYSTEM/state"
  run "$INSTALL" status
  [ "$status" -eq 1 ]
  says "mlx-cluster-18431.service: failed, last exit code 78"
  says "journalctl -u mlx-cluster-18431.service"
}

@test "launchd: status reads what launchctl prints" {
  stub_launchd
  install_local --local 2
  run "$INSTALL" status
  [ "$status" -eq 0 ]
  [ "${lines[0]}" = "mlx-cluster.server.18431: running, pid 4711" ]
  touch "$SYSTEM/gave_up"
  run "$INSTALL" status
  [ "$status" -eq 1 ]
  says "mlx-cluster.server.18431: not running, last exit code 78"
  rm "$SYSTEM/loaded"
  run "$INSTALL" status
  [ "$status" -eq 1 ]
  says "not loaded"
  says "tail $CHECKOUT/logs/service-18431.log"
}

@test "without launchd or systemd it exits 3" {
  rm "$STUBS/systemctl"
  for tool in bash env dirname awk; do ln -s "$(command -v "$tool")" "$STUBS/"; done
  PATH=$STUBS run "$INSTALL" --local 2
  [ "$status" -eq 3 ]
  says "systemctl is not installed"
}

# Every setting of the run script that is no secret, NAME=VALUE a line, none of them its default.
settings_of_run() {
  "$PYTHON" - "$REPO" "$MODEL" <<'CODE'
import sys
sys.path.insert(0, sys.argv[1])
from server.protocol.settings_table import OF_USERS, RUN
for setting in OF_USERS:
    if not setting.read_by(RUN) or setting.secret or setting.name in ("HOSTFILE", "CLUSTER_ENV"):
        continue
    value = {"choice": setting.choices[-1:], "switch": "1", "path": [sys.argv[2]], "text": "x",
             "program": [sys.executable], "words": "x", "folders": [f"y={sys.argv[2]}"]}.get(setting.kind, [f"{setting.most:.0f}"])[0]
    value = {"BACKEND": "ring", "CHAT_TEMPLATE_KWARGS": "{}"}.get(setting.name, value)
    print(f"{setting.name}={value}")
CODE
}

@test "every setting of the run script is remembered, but for the keys" {
  keys=$BATS_TEST_TMPDIR/keys
  (umask 077 && echo sk-secret >"$keys")
  assignments=()
  while IFS= read -r line; do
    case $line in API_KEY_FILE=*) line="API_KEY_FILE=$keys" ;; esac
    assignments+=("$line")
  done < <(settings_of_run)
  [ "${#assignments[@]}" -gt 25 ]
  run env "${assignments[@]}" "$INSTALL" --local 2 --dry-run
  [ "$status" -eq 0 ]
  for line in "${assignments[@]}"; do
    printf '%s\n' "$output" | grep -qxF -- "$line" || { echo "$line"; return 1; }
  done
}

@test "cluster.env is left to each start, but for what the unit depends on; a key may be in it" {
  cp "$REPO/scripts/run_openai_cluster_server.sh" "$RUN"
  unset HTTP_PORT
  printf 'MODEL_DIR=%s\nQUEUE_MAX=3\nHTTP_PORT=18431\nHTTP_HOST=127.0.0.9\nDRAIN_TIMEOUT=45\n' \
    "$MODEL" >"$CHECKOUT/cluster.env"
  echo "API_KEY=sk-secret" >>"$CHECKOUT/cluster.env"
  run "$INSTALL" --local 2
  [ "$status" -eq 2 ]
  says "chmod 600 $CHECKOUT/cluster.env"
  chmod 600 "$CHECKOUT/cluster.env"
  MAX_BATCH=5 run "$INSTALL" --local 2
  [ "$status" -eq 0 ]
  for line in HTTP_PORT=18431 HTTP_HOST=127.0.0.9 DRAIN_TIMEOUT=45 MAX_BATCH=5; do
    grep -qx "$line" "$SETTINGS"
  done
  lacks "$SETTINGS" ^QUEUE_MAX
  lacks "$SETTINGS" ^MODEL_DIR
  lacks "$SETTINGS" sk-secret
  lacks "$CALLS" sk-secret
  grep -qx "TimeoutStopSec=105" "$SYSTEM/mlx-cluster-18431.service"
}
