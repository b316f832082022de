#!/usr/bin/env bash
# From Macs that ssh reaches to an answer: every step of the set-up, one after the other.
#
# Usage: setup_cluster.sh [--model MODEL] [--ring-tcp] [--yes] [--from STEP] [--skip STEP]...
#                         [--dry-run] [--list] [--help] [HOST...]
#
# Run it on rank 0. HOST are ssh names, NAME or USER@NAME, rank 0 first; later they are known from
# the last time. Each step first looks whether it is needed: what still holds is not done again. It
# says what it will do, with the commands, and asks: yes, no (the end), or skip. These commands are
# the other scripts, which can be run by themselves. After a failure or Ctrl-C run it again.
#
#   --model MODEL  What to serve: the folder of an MLX model here, or a Hugging Face repo such as
#                  mlx-community/Foo-4bit (MODEL_DIR, else that of the last time, else the first of
#                  MODELS and MODELS_DIR, else it asks). What these name, too, is brought along.
#   --ring-tcp     No RDMA: ranks over the ordinary network. So it is with hosts that are no Macs.
#   --yes          Yes to every question. Needed where there is no terminal to ask at; sudo must not
#                  ask for a password then.
#   --from STEP    Begin with this step, and do not look at those before it.
#   --skip STEP    Leave this one out. May be repeated.
#   --dry-run      Print the commands of every step, ask no host, change nothing.
#   --list         Print the steps.
#
# Hosts, model and --ring-tcp are kept in run/setup.json. Settings of the environment are not: the
# line after `to go on:` names them, but no keys.
#
# Exit codes: 0 it serves, 1 a step failed or was refused, 2 usage, 3 a tool or a file is missing,
# 130 Ctrl-C.
set -euo pipefail

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

main() {
  exec_verb lib.setup.main "$@"
}

main "$@"
