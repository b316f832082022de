# shellcheck shell=bash
# How launchd and systemd are asked to take, drop and tell of a service. Sourced after common.sh by
# install_service.sh, never run.
#
# choose_manager comes first; it sets MANAGER, launchd or systemd, by which the functions install_*,
# remove_* and ask_* are called. HTTP_PORT, RUN_DIR, DRY_RUN and USER_SERVICE, which is set for a
# service of the user's own, are the script's. bash 3.2 and 5.

DAEMONS=/Library/LaunchDaemons
AGENTS=${HOME-}/Library/LaunchAgents
SYSTEM_UNITS=/etc/systemd/system
USER_UNITS=${HOME-}/.config/systemd/user

# Beyond DRAIN_TIMEOUT, for what the supervisor may have to do: end a launcher that is stuck (30 s)
# and clean hosts that do not answer (25 s); each may take RANK_END_TIMEOUT longer.
STOP_SLACK_S=60

# stop_seconds DRAIN_TIMEOUT RANK_END_TIMEOUT: prints how long the service may take to stop.
stop_seconds() {
  awk -v drain="$1" -v end="${2:-0}" -v slack="$STOP_SLACK_S" \
    'BEGIN { s = drain + 2 * end; print int(s) + (s > int(s)) + slack }'
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
      # shellcheck disable=SC2034  # for the script
      MANAGER=systemd
      NAME=mlx-cluster-$HTTP_PORT.service
      SYSTEM_UNIT=$SYSTEM_UNITS/$NAME
      USER_UNIT=$USER_UNITS/$NAME
      need systemctl "only launchd and systemd are known here; run" \
        "scripts/run_openai_cluster_server.sh from your own service manager"
      ;;
  esac
}

# find_installed: sets UNIT to the unit that is there and UNIT_KIND to `user` or `system`; fails if
# there is none.
# shellcheck disable=SC2034  # UNIT_KIND is for the script
find_installed() {
  UNIT=$SYSTEM_UNIT UNIT_KIND=system
  [ ! -f "$UNIT" ] || return 0
  UNIT=$USER_UNIT UNIT_KIND=user
  [ -f "$UNIT" ]
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

# -- launchd

launchd_domain() {
  if [ -n "$USER_SERVICE" ]; then printf 'gui/%s\n' "$(id -u)"; else printf 'system\n'; fi
}

launchd_knows_it() {
  launchctl print "$(launchd_domain)/$NAME" >/dev/null 2>&1
}

install_launchd() { # UNIT
  unload_launchd || return 1
  for_service launchctl enable "$(launchd_domain)/$NAME" &&
    for_service launchctl bootstrap "$(launchd_domain)" "$1"
}

remove_launchd() { # UNIT
  unload_launchd && for_service rm -f "$1"
}

# bootout returns before the server has drained, and until then nothing can be loaded again.
unload_launchd() {
  local waited=0 most
  launchd_knows_it || return 0
  for_service launchctl bootout "$(launchd_domain)/$NAME" || true
  [ -z "$DRY_RUN" ] || return 0
  most=$(stop_seconds "$(cat "$RUN_DIR/drain_timeout" 2>/dev/null || echo 30)" \
    "$(cat "$RUN_DIR/rank_end_timeout" 2>/dev/null || true)")
  while launchd_knows_it; do
    [ "$waited" -lt "$((most * 5))" ] || return 1
    [ "$((waited % 50))" != 49 ] || log "waiting for the server to drain, $(((waited + 1) / 5)) s"
    sleep 0.2
    waited=$((waited + 1))
  done
}

# ask_launchd: sets STATE (`running`, or launchd's own word), PID and CODE, of its last end.
ask_launchd() {
  local told
  told=$(launchctl print "$(launchd_domain)/$NAME" 2>/dev/null) || told=''
  STATE=$(printf '%s\n' "$told" | awk '$1 == "state" && !n++ { sub(/^[^=]*= /, ""); print }')
  PID=$(printf '%s\n' "$told" | awk '$1 == "pid" && !n++ { print $3 }')
  # `78: EX_CONFIG`, or `(never exited)`
  CODE=$(printf '%s\n' "$told" |
    awk '/last exit code = [0-9]/ && !n++ { sub(/^[^=]*= /, ""); print $0 + 0 }')
  [ -n "$told" ] || STATE="not loaded"
}

# -- systemd

# systemd_control COMMAND...: with the right to do it.
systemd_control() {
  if [ -n "$USER_SERVICE" ]; then
    run systemctl --user "$@"
  else
    as_root systemctl "$@"
  fi
}

install_systemd() {
  # restart and not start: a service that was there has to take the new settings.
  systemd_control daemon-reload && systemd_control enable "$NAME" &&
    systemd_control restart "$NAME" || return 1
  if [ -n "$USER_SERVICE" ]; then
    run loginctl enable-linger "$(id -un)" ||
      warn "without lingering it ends when you log out: sudo loginctl enable-linger $(id -un)"
  fi
}

remove_systemd() { # UNIT
  systemd_control disable --now "$NAME" && for_service rm -f "$1" &&
    systemd_control daemon-reload
}

# ask_systemd: as ask_launchd.
# shellcheck disable=SC2034  # the three are for the script
ask_systemd() {
  local told
  set -- show -p ActiveState -p MainPID -p ExecMainStatus "$NAME"
  [ -z "$USER_SERVICE" ] || set -- --user "$@"
  told=$(systemctl "$@" 2>/dev/null) || told=''
  STATE=$(printf '%s\n' "$told" | sed -n 's/^ActiveState=//p')
  PID=$(printf '%s\n' "$told" | sed -n 's/^MainPID=//p')
  CODE=$(printf '%s\n' "$told" | sed -n 's/^ExecMainStatus=//p')
  [ "$STATE" != active ] || STATE=running
  [ "$PID" != 0 ] || PID=
}
