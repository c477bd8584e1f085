#!/usr/bin/env bash
# Trains or tests as a Slurm job step, one task a card.
#
#   bash tools/slurm.sh train PARTITION JOB CONFIG GPUS [arguments of tools/train.py]
#   bash tools/slurm.sh test  PARTITION JOB CONFIG GPUS --checkpoint FILE [arguments of tools/test.py]
#
# GPUS is the number of cards in all. Environment:
#   GPUS_PER_NODE  cards of a machine (8, or GPUS where that is less)
#   CPUS_PER_TASK  cores for each card (4)
#   SRUN_ARGS      more arguments for srun, separated by blanks
#   DEEPSPEED, STRATEGY  as for tools/dist.sh     PYTHON  Python to run (.venv's)
set -euo pipefail
# shellcheck source=tools/launch_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch_lib.sh"
USAGE="bash tools/slurm.sh train|test PARTITION JOB CONFIG GPUS [arguments]"

(($# >= 5)) || fail "$# argument(s): $*" \
  "a verb, a partition, a job name, a config and a number of cards" "$USAGE"
verb=$1 partition=$2 job=$3 config=$4 gpus=$5
shift 5
check_verb "$verb"
check_number GPUS "$gpus"
check_config "$config"
deepspeed_args "$verb"
strategy_args "$verb"
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
check_number GPUS_PER_NODE "$per_node"
check_number CPUS_PER_TASK "${CPUS_PER_TASK:-4}"
if ((gpus < per_node)); then
  per_node=$gpus
fi
if ((gpus % per_node)); then
  fail "GPUS=$gpus with GPUS_PER_NODE=$per_node" "whole machines: a multiple of GPUS_PER_NODE" \
    "change GPUS or GPUS_PER_NODE"
fi
command -v srun >/dev/null ||
  fail "no srun on this machine" "a login node of a Slurm cluster" \
    "without Slurm: bash tools/dist.sh $verb $config $gpus"
find_python
# A login node has no cards, the nodes that run the job have.
export_environment "$per_node"

read -r -a srun_args <<<"${SRUN_ARGS:-}"
exec srun --partition "$partition" --job-name "$job" --gres "gpu:$per_node" --ntasks "$gpus" \
  --ntasks-per-node "$per_node" --cpus-per-task "${CPUS_PER_TASK:-4}" --kill-on-bad-exit=1 \
  ${srun_args[@]+"${srun_args[@]}"} "$PYTHON" -u "$ROOT/tools/$verb.py" "$config" \
  ${DEEPSPEED_ARGS[@]+"${DEEPSPEED_ARGS[@]}"} \
  ${STRATEGY_ARGS[@]+"${STRATEGY_ARGS[@]}"} "$@" --launcher slurm
