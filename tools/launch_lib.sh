# shellcheck shell=bash
# Checks that dist.sh and slurm.sh share. Sourced, not run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DEEPSPEED_NAMES=(deepspeed_zero1 deepspeed_zero2 deepspeed_zero2_offload
  deepspeed_zero3 deepspeed_zero3_offload)

# fail FOUND EXPECTED FIX: an error of the user's that says all three, exit status 2.
fail() {
  printf '%s: found: %s\n  expected: %s\n  what to do: %s\n' \
    "$(basename "$0")" "$1" "$2" "$3" >&2
  exit 2
}

# nearest NAME KNOWN...: " (did you mean 'x'?)" for the known name that shares most with NAME.
nearest() {
  local name=${1,,} best='' best_score=0 known score i
  name=${name//[^a-z0-9]/}
  shift
  for known in "$@"; do
    local plain=${known##*/}
    plain=${plain%.py}
    plain=${plain,,}
    plain=${plain//[^a-z0-9]/}
    # Letters in common from the front and from the back, less what one has more than the other.
    score=0
    for ((i = 0; i < ${#name} && i < ${#plain}; i++)); do
      [[ ${name:i:1} == "${plain:i:1}" ]] || break
      score=$((score + 1))
    done
    for ((i = 1; i <= ${#name} - score && i <= ${#plain} - score; i++)); do
      [[ ${name: -i:1} == "${plain: -i:1}" ]] || break
    done
    score=$((2 * (score + i - 1) - ${#plain}))
    if ((score > best_score)); then
      best=$known best_score=$score
    fi
  done
  [[ -z $best ]] || printf " (did you mean '%s'?)" "$best"
}

check_verb() {
  [[ $1 == train || $1 == test ]] ||
    fail "the verb '$1'$(nearest "$1" train test)" "train or test" "$USAGE"
}

check_number() {  # NAME VALUE
  [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1='$2'" "a number of 1 or more" "$USAGE"
}

check_config() {
  [[ -f $1 ]] && return
  local configs=("$ROOT"/projects/sa2va/configs/*.py "$ROOT"/projects/sa2va/configs/*/*.py)
  fail "no config file '$1'$(nearest "$(basename "$1" .py)" "${configs[@]#"$PWD"/}")" \
    "a .py file, relative to the current folder" "correct the path"
}

# Sets DEEPSPEED_ARGS for the verb $1 from DEEPSPEED: one of our names (zero2 is short for
# deepspeed_zero2) or a JSON file.
deepspeed_args() {
  DEEPSPEED_ARGS=()
  [[ -n ${DEEPSPEED:-} ]] || return 0
  local name=$DEEPSPEED
  [[ $name != zero* ]] || name=deepspeed_$name
  if [[ ! -f $DEEPSPEED && " ${DEEPSPEED_NAMES[*]} " != *" $name "* ]]; then
    fail "DEEPSPEED=$DEEPSPEED$(nearest "deepspeed_${name#deepspeed_}" "${DEEPSPEED_NAMES[@]}")" \
      "${DEEPSPEED_NAMES[*]}, or a JSON file" "correct or unset DEEPSPEED"
  fi
  if [[ $1 == train ]]; then
    [[ -f $DEEPSPEED ]] && name=$DEEPSPEED
    DEEPSPEED_ARGS=(--deepspeed "$name")
  else
    echo "$(basename "$0"): DEEPSPEED=$DEEPSPEED is for training; testing does without" >&2
  fi
}

# Sets STRATEGY_ARGS for the verb $1 from STRATEGY.
strategy_args() {
  STRATEGY_ARGS=()
  [[ -n ${STRATEGY:-} ]] || return 0
  if [[ $STRATEGY != ddp && $STRATEGY != fsdp2 ]]; then
    fail "STRATEGY=$STRATEGY$(nearest "$STRATEGY" ddp fsdp2)" \
      "ddp or fsdp2 (DeepSpeed's stages are DEEPSPEED=...)" "correct or unset STRATEGY"
  fi
  if [[ -n ${DEEPSPEED:-} ]]; then
    fail "STRATEGY=$STRATEGY and DEEPSPEED=$DEEPSPEED" \
      "one of them: DeepSpeed is a strategy itself" "unset one of them"
  fi
  if [[ $1 == train ]]; then
    STRATEGY_ARGS=(--strategy "$STRATEGY")
  else
    echo "$(basename "$0"): STRATEGY=$STRATEGY is for training; testing does without" >&2
  fi
}

# Sets PYTHON: the caller's, else that of .venv, else python3.
find_python() {
  if [[ -z ${PYTHON:-} ]]; then
    PYTHON=$ROOT/.venv/bin/python
    [[ -x $PYTHON ]] || PYTHON=python3
  fi
  command -v "$PYTHON" >/dev/null ||
    fail "no Python '$PYTHON'" "a Python with the project's packages" "make setup, or set PYTHON"
}

# Number of NVIDIA cards of this machine, 0 without a driver.
count_cards() {
  local listed
  listed=$(nvidia-smi -L 2>/dev/null) || listed=''
  grep -c '^GPU ' <<<"$listed" || true
}

# What every process of a launch needs; $1: number of cards of this machine.
export_environment() {
  # Several processes on few cores: one thread each, or they wait for each other.
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
  export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
  # DeepSpeed compiles with ninja, which pip put beside Python, at its first use.
  PATH=$(dirname "$(command -v "$PYTHON")"):$PATH
  export PATH
  if (($1 == 0)); then
    export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}
  fi
}
