# What verify_cluster.sh says of hosts, from recorded output of macOS's tools.

setup() {
  load helper
  make_checkout
  stub_ssh
  PYTHON=$(real_python)
  export PYTHON
  hostfile studio.local.json
  healthy mac0
  healthy mac1
}

healthy() {
  mkdir -p "$REMOTE/$1"
  echo enabled >"$REMOTE/$1/rdma_ctl"
  printf '%s\n' '    device          	   node GUID' \
    '    ------          	----------------' \
    '    rdma_en2        	8096a9d9edbaac04' \
    '    rdma_en3        	8096a9d9edbaac05' >"$REMOTE/$1/ibv_devices"
}

@test "--help prints the header; unknown arguments are usage errors" {
  run "$VERIFY" --help
  [ "$status" -eq 0 ]
  says "Usage: verify_cluster.sh"
  run "$VERIFY" --all
  [ "$status" -eq 2 ]
}

@test "a healthy cluster passes every check on every host" {
  run "$VERIFY"
  [ "$status" -eq 0 ]
  [ "$(echo "$output" | grep -c '^pass ')" -eq 7 ]
  [ "${output#*fail}" = "$output" ]
  echo "$output" | grep -Eq '^pass +mac1 +devices +rdma_en3'
  [ "$(grep -c -- '-n -o BatchMode=yes -o ConnectTimeout=5' "$CALLS")" -eq 6 ]
}

@test "a host that is down fails with a hint, and the others are still checked" {
  touch "$REMOTE/mac0/down"
  run "$VERIFY"
  [ "$status" -eq 1 ]
  echo "$output" | grep -Eq '^fail +mac0 +ssh +exit code 255: .*Connection refused'
  says "hint: ssh-copy-id mac0"
  echo "$output" | grep -Eq '^pass +mac1 +devices'
  run called "mac0 /usr/bin"
  [ "$status" -ne 0 ]
}

@test "a shell profile that prints fails, since it would break the launch" {
  echo "Welcome to mac1" >"$REMOTE/mac1/profile"
  run "$VERIFY"
  [ "$status" -eq 1 ]
  echo "$output" | grep -Eq '^fail +mac1 +ssh +its shell prints by itself: Welcome to mac1'
}

@test "RDMA that is off, or a macOS without it" {
  echo disabled >"$REMOTE/mac0/rdma_ctl"
  rm "$REMOTE/mac1/rdma_ctl"
  run "$VERIFY"
  [ "$status" -eq 1 ]
  echo "$output" | grep -Eq '^fail +mac0 +rdma +disabled'
  echo "$output" | grep -Eq '^fail +mac1 +rdma +it has no /usr/bin/rdma_ctl'
  says "rdma_ctl enable"
}

@test "a device of the host's row that is not there is named, with those that are" {
  sed '$d' "$REMOTE/mac1/ibv_devices" >"$REMOTE/mac1/shorter"
  mv "$REMOTE/mac1/shorter" "$REMOTE/mac1/ibv_devices"
  run "$VERIFY"
  [ "$status" -eq 1 ]
  echo "$output" | grep -Eq '^fail +mac1 +devices +no rdma_en3; it has rdma_en2'
}

@test "a device whose name merely begins like the wanted one does not count" {
  sed 's/rdma_en3 /rdma_en31/' "$REMOTE/mac1/ibv_devices" >"$REMOTE/mac1/other"
  mv "$REMOTE/mac1/other" "$REMOTE/mac1/ibv_devices"
  run "$VERIFY"
  [ "$status" -eq 1 ]
}

@test "no devices at all" {
  head -n 2 "$REMOTE/mac0/ibv_devices" >"$REMOTE/mac0/none"
  mv "$REMOTE/mac0/none" "$REMOTE/mac0/ibv_devices"
  run "$VERIFY"
  [ "$status" -eq 1 ]
  says "it has none"
}

@test "a tool that hangs is a finding within the deadline" {
  sed 's/^ANSWER_WITHIN_S=10/ANSWER_WITHIN_S=1/' "$VERIFY" >"$VERIFY.quick"
  chmod +x "$VERIFY.quick"
  touch "$REMOTE/mac1/hangs"
  run "$VERIFY.quick"
  [ "$status" -eq 1 ]
  echo "$output" | grep -Eq "^fail +mac1 +rdma +no answer to '/usr/bin/rdma_ctl status' within 1 s"
}

@test "a hostfile without rdma needs no RDMA, and it says so" {
  echo '[{"ssh": "mac0", "ips": ["192.0.2.1"]}, {"ssh": "mac1", "ips": ["192.0.2.2"]}]' \
    >"$CHECKOUT/hostfiles/studio.local.json"
  rm "$REMOTE"/mac*/rdma_ctl
  run "$VERIFY"
  [ "$status" -eq 0 ]
  says "RDMA is not used"
  [ "$(echo "$output" | grep -c '^pass ')" -eq 3 ]
}

@test "a malformed matrix fails, and the hosts are checked all the same" {
  sed 's/null, "rdma_en3"/null/' "$CHECKOUT/hostfiles/studio.local.json" >"$BATS_TEST_TMPDIR/f"
  HOSTFILE=$BATS_TEST_TMPDIR/f run "$VERIFY"
  [ "$status" -eq 1 ]
  echo "$output" | grep -Eq '^fail +- +hostfile +rank 0 \(mac0\): "rdma" has 1 entries'
  echo "$output" | grep -Eq '^pass +mac0 +ssh'
}

@test "a template that was not filled in asks no host" {
  HOSTFILE=$CHECKOUT/hostfiles/m3-ultra-jaccl.template.json run "$VERIFY"
  [ "$status" -eq 1 ]
  says "<RANK0_LAN_IP>"
  run called "ssh "
  [ "$status" -ne 0 ]
}

@test "no hostfile: exit 3 with a hint to copy the template" {
  rm "$CHECKOUT"/hostfiles/*.local.json
  run "$VERIFY"
  [ "$status" -eq 3 ]
  says "cp hostfiles/m3-ultra-jaccl.template.json"
  HOSTFILE=/none.json run "$VERIFY"
  [ "$status" -eq 3 ]
}

@test "--dry-run prints the commands and asks no host" {
  run "$VERIFY" --dry-run
  [ "$status" -eq 0 ]
  says "mac1 /usr/bin/ibv_devices"
  run called "ssh "
  [ "$status" -ne 0 ]
}
