#!/usr/bin/env bash
# Trains or tests with several processes of one or more machines.
#
#   bash tools/dist.sh train CONFIG GPUS [arguments of tools/train.py]
#   bash tools/dist.sh test  CONFIG GPUS --checkpoint FILE [arguments of tools/test.py]
#
# GPUS is the number of processes on this machine: one a card, or gloo processes on the CPU where
# there is no NVIDIA card. Environment:
#   DEEPSPEED    deepspeed_zero1, _zero2, _zero2_offload, _zero3, _zero3_offload or a JSON file
#                (training only)
#   STRATEGY     ddp (plain data parallel, the default) or fsdp2 (training only, without DEEPSPEED)
#   NNODES       machines (1)                   MASTER_ADDR  address of the first one (127.0.0.1)
#   NODE_RANK    number of this machine (0)     PORT         port of the first one (29500; on one
#   PYTHON       Python to run (.venv's)                     machine a random free one)
#   STOP_SECONDS time that SIGTERM and SIGUSR1 leave a run to save a checkpoint (600)
#   TORCHRUN_ARGS more for torchrun (--shutdown_timeout $STOP_SECONDS; set it empty for torch < 2.13)
#
# SIGTERM and SIGUSR1 are passed on to all processes; the exit status is then 143.
set -euo pipefail
# shellcheck source=tools/launch_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/launch_lib.sh"
USAGE="bash tools/dist.sh train|test CONFIG GPUS [arguments]"

port_is_taken() {
  (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

free_port() {
  # A random one: two runs that start together would both find a fixed one free.
  local port=$((20000 + RANDOM % 12000))
  while port_is_taken "$port"; do
    port=$((20000 + RANDOM % 12000))
  done
  echo "$port"
}

(($# >= 3)) || fail "$# argument(s): $*" "a verb, a config and a number of processes" "$USAGE"
verb=$1 config=$2 gpus=$3
shift 3
check_verb "$verb"
check_number GPUS "$gpus"
check_config "$config"
deepspeed_args "$verb"
strategy_args "$verb"
nnodes=${NNODES:-1} node_rank=${NODE_RANK:-0}
check_number NNODES "$nnodes"
if ! [[ $node_rank =~ ^[0-9]+$ ]] || ((node_rank >= nnodes)); then
  fail "NODE_RANK='$node_rank'" "a number from 0 to NNODES-1 = $((nnodes - 1))" \
    "set NODE_RANK on each machine"
fi
if ((nnodes > 1)) && [[ -z ${MASTER_ADDR:-} ]]; then
  fail "NNODES=$nnodes without MASTER_ADDR" "the address of the first machine, the same on all" \
    "set MASTER_ADDR"
fi
# Several machines must agree on a port, so only one machine may choose another.
if [[ -n ${PORT:-} ]]; then
  check_number PORT "$PORT"
elif ((nnodes == 1)); then
  PORT=$(free_port)
else
  PORT=29500
fi
STOP_SECONDS=${STOP_SECONDS:-600}
check_number STOP_SECONDS "$STOP_SECONDS"
cards=$(count_cards)
if ((cards > 0 && gpus > cards)) && [[ -z ${CUDA_VISIBLE_DEVICES+set} ]]; then
  fail "GPUS=$gpus on a machine with $cards NVIDIA card(s)" "at most $cards" \
    "give $cards, or more machines by NNODES"
fi
find_python
export_environment "$cards"

# torch before 2.13 has no such option, and waits 30 s.
read -ra torchrun_args <<< "${TORCHRUN_ARGS---shutdown_timeout $STOP_SECONDS}"

# No exec: torchrun's own status after a signal is 1, and a script that starts a run again must tell
# a run that was stopped from one that failed.
stopped=0
pass_on() {  # SIGNAL STATUS
  stopped=$2
  kill -s "$1" "$launcher" 2>/dev/null || true
}
"$PYTHON" -m torch.distributed.run --nnodes "$nnodes" --node_rank "$node_rank" \
  --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "$PORT" --nproc_per_node "$gpus" \
  --signals_to_handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 ${torchrun_args[@]+"${torchrun_args[@]}"} \
  "$ROOT/tools/$verb.py" "$config" ${DEEPSPEED_ARGS[@]+"${DEEPSPEED_ARGS[@]}"} \
  ${STRATEGY_ARGS[@]+"${STRATEGY_ARGS[@]}"} "$@" \
  --launcher pytorch &
launcher=$!
trap 'pass_on TERM 143' TERM
trap 'pass_on USR1 143' USR1
trap 'pass_on INT 130' INT
status=0
wait "$launcher" || status=$?
# A signal ends a wait, not what it waits for.
while kill -0 "$launcher" 2>/dev/null; do
  status=0
  wait "$launcher" || status=$?
done
((stopped && status != 0)) && status=$stopped
exit "$status"
