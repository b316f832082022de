# What check_model.sh does with its arguments; what it finds has tests in python.

setup() {
  load helper
  make_checkout
  CHECK=$CHECKOUT/scripts/check_model.sh
  stub_ssh
  PYTHON=$(real_python)
  export PYTHON HF_HUB_OFFLINE=1
}

@test "--help prints the header" {
  run "$CHECK" --help
  [ "$status" -eq 0 ]
  says "Usage: check_model.sh"
  says "Exit codes:"
}

@test "no model, an unknown option, both kinds of memory: usage errors" {
  run "$CHECK"
  [ "$status" -eq 2 ]
  says "MODEL is missing"
  run "$CHECK" --force /models/x
  [ "$status" -eq 2 ]
  says "unknown argument '--force'"
  run "$CHECK" --hosts mac0 --memory 512 org/name
  [ "$status" -eq 2 ]
  says "one of them"
}
