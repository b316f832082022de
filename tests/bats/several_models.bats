# MODELS and MODELS_DIR in the scripts that start ranks, or have them started.

setup() {
  load helper
  make_checkout
  stub_python
  BIG=$BATS_TEST_TMPDIR/Big-70B
  SMALL="$BATS_TEST_TMPDIR/my models, größe=4/Small-4B"
  make_model "$BIG" "$SMALL"
}

make_model() {
  local folder
  for folder; do
    mkdir -p "$folder"
    echo '{}' >"$folder/config.json"
    : >"$folder/model.safetensors"
  done
}

@test "MODEL_DIR is the first, those of MODELS come behind it, whatever is in their paths" {
  MODEL_ID=large MODEL_DIR=$BIG MODELS="small=$SMALL" PINNED=small run "$RUN" --local 2 --detach
  [ "$status" -eq 0 ]
  called "--env MODEL_DIR=$BIG --env MODEL_ID=large --env MODELS=small=$SMALL --env PINNED=small"
  called "lib.model.check_model $BIG 2"
  called "lib.model.check_models 2 --parallel auto $BIG large small=$SMALL  small"
  called "--started-with MODEL_ID=large"
  says "large is served by 2 rank(s) at http://127.0.0.1:18431, and when a request names it: small. Try:"
  says '"model": "large"'
}

# What has come into MODELS_DIR when ranks start again is not on all hosts yet, perhaps.
@test "without MODEL_DIR the first of MODELS, then of MODELS_DIR, is loaded at the start" {
  HOME=$BATS_TEST_TMPDIR MODELS='b=~/Big-70B' run "$RUN" --local 2
  [ "$status" -eq 0 ]
  called "--env MODEL_DIR=$BIG --env MODEL_ID=b --env HTTP_HOST="
  cd "$BATS_TEST_TMPDIR"
  make_model "top/ORG/one" "top/two" "top/half.partial" "top/.hidden"
  MODELS_DIR=./top/ run "$RUN" --local 2
  [ "$status" -eq 0 ]
  called "--env MODEL_DIR=$BATS_TEST_TMPDIR/top/ORG/one --env MODEL_ID=ORG/one --env MODELS=two=$BATS_TEST_TMPDIR/top/two --env HTTP_HOST="
  says "when a request names it: two"
}

@test "what is wrong is told before the start, with what is allowed" {
  make_model "$BATS_TEST_TMPDIR/top/Big-70B" "$BATS_TEST_TMPDIR/Ü 1"
  while IFS='|' read -r settings words; do
    IFS=';' read -r -a pairs <<<"$settings"
    run env "${pairs[@]}" "$RUN" --local 2
    [ "$status" -eq 2 ] || { echo "$settings: $status, $output"; return 1; }
    says "$words"
  done <<CASES
MODELS=small=Small|MODELS='small=Small': must be NAME=/FOLDER
MODELS=small=/none|MODELS='small=/none': must lead to a folder; no such folder
MODELS=a=$BIG,a=$SMALL|must have another name; 'a' is taken
MODELS_DIR=/none|MODELS_DIR='/none': must lead to a folder
MODELS_DIR=$BIG|must be a folder of models; it is one: set MODEL_DIR
MODEL_DIR=$BIG;MODELS_DIR=$BATS_TEST_TMPDIR/top|'Big-70B' must be a name that no other model has
MODEL_DIR=$BIG;MODELS=b=$SMALL;PINNED=c|PINNED='c': must be of the models: Big-70B, b
MODEL_DIR=$BATS_TEST_TMPDIR/Ü 1;MODELS=b=$BIG|MODEL_ID='Ü 1': must be
CASES
  run called lib.supervise
  [ "$status" -ne 0 ]
}

@test "with a hostfile rank 0 lists them, whatever its profile prints; --dry-run asks no host" {
  hostfile studio.local.json
  stub_ssh
  mkdir -p "$REMOTE/mac0"
  printf 'model of the month\nhello\tworld\tagain\n' >"$REMOTE/mac0/profile"
  make_model "$BATS_TEST_TMPDIR/top/one"
  MODELS_DIR=$BATS_TEST_TMPDIR/top run "$RUN"
  [ "$status" -eq 0 ]
  called "--env MODEL_DIR=$BATS_TEST_TMPDIR/top/one --env MODEL_ID=one"
  : >"$CALLS"
  MODELS=b=/elsewhere/b,c=/c run "$RUN" --dry-run
  [ "$status" -eq 0 ]
  says "--env MODEL_DIR=/elsewhere/b --env MODEL_ID=b --env MODELS=c=/c"
  MODELS_DIR=/elsewhere run "$RUN" --dry-run
  [ "$status" -eq 0 ]
  says "--env MODELS_DIR=/elsewhere"
  if called ssh; then return 1; fi
  touch "$REMOTE/mac0/down"
  MODELS=b=/b run "$RUN"
  [ "$status" -eq 1 ]
  says "the models could not be listed on mac0 (rank 0)"
}

@test "a long list is told in part" {
  for n in 1 2 3 4 5 6 7 8; do make_model "$BATS_TEST_TMPDIR/top/m$n"; done
  MODELS_DIR=$BATS_TEST_TMPDIR/top run "$RUN" --local 1 --detach
  [ "$status" -eq 0 ]
  says "m2, m3, m4, m5, m6 and 2 more. Try:"
}

@test "a service keeps them, from the root" {
  stub systemctl </dev/null
  stub uname <<<'echo Linux'
  cd "$BATS_TEST_TMPDIR"
  make_model top/one
  # shellcheck disable=SC2088  # for the setting to expand
  HOME=$BATS_TEST_TMPDIR MODELS='b=~/Big-70B' MODELS_DIR=top PINNED=one \
    run "$CHECKOUT/scripts/install_service.sh" --user --local 1 --dry-run
  [ "$status" -eq 0 ]
  says "MODELS=b=$BIG"
  says "MODELS_DIR=$BATS_TEST_TMPDIR/top"
  says "PINNED=one"
}

@test "the benchmark takes a name of the list, or any folder" {
  export MODEL_ID=large MODEL_DIR=$BIG MODELS="small=$SMALL"
  run "$BENCH" --local 1 --model small
  [ "$status" -eq 0 ]
  called "--model $SMALL"
  run "$BENCH" --local 1 --model large
  called "--model $BIG"
  make_model "$BATS_TEST_TMPDIR/third"
  run "$BENCH" --local 1 --model "$BATS_TEST_TMPDIR/third"
  called "--model $BATS_TEST_TMPDIR/third"
  run "$BENCH" --local 1 --model none
  [ "$status" -eq 2 ]
  says "--model 'none': must be a folder, or one of large, small"
}
