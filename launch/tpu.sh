#!/usr/bin/env bash
# graftax on Cloud TPU VMs, over gcloud's queued resources. Every call is printed before it is made.
#
#   bash launch/tpu.sh VERB [OPTIONS] [-- COMMAND ...]
#
#   create    ask for the TPU (does nothing where it exists; replaces a failed or suspended one)
#   wait      until the TPU is there
#   setup     copy the committed source to all workers and install it there with jax[tpu]
#   run       start COMMAND on all workers; it goes on when the connection is lost
#   logs      show the log of the run on one worker
#   status    state of the TPU, and of the run on every worker
#   ssh       a shell on one worker
#   babysit   create, wait, setup and run; again after preemption; until COMMAND ends with 0, or with 1, 2 or 3
#   stop      ask the run to save and stop
#   delete    give the TPU back
#
# Options
#   --spot | --on-demand | --reserved   how the TPU is paid for (default: --spot)
#   --dry-run           print the calls, make none
#   --yes               do not ask before deleting
#   --worker K          for logs and ssh (default 0)
#   --follow            for logs: go on showing
#   --max-hours H       babysit deletes the TPU after H hours (default 24); create and wait give up the queue after as many
#   --delete-on-exit    babysit deletes the TPU also when COMMAND has ended
#
# From the environment
#   NAME PROJECT ZONE   of the TPU (always needed)
#   TYPE                accelerator type, v5litepod-8, v6e-16, v5p-32, v4-8 ... (for create and babysit)
#   RUN_ID              name of the run (default: NAME); the same name resumes in the same folder on the workers
#   WORKDIR             gs://BUCKET/FOLDER that COMMAND writes to; needed for TYPEs of several workers. create looks whether
#                       the bucket is there; run appends --config.workdir=WORKDIR to COMMAND. Other hosts and a TPU that is
#                       created anew find the run there
#   JAX                 version of jax on the workers (default 0.10.2)
#   PASS_ENV            names of variables that COMMAND shall see, like "WANDB_API_KEY HF_TOKEN"; values never show in a call
#   POLL                seconds between looks (default 30)
#
# Exit codes: 0 done, 2 bad usage, 4 the TPU could not be had in time; babysit returns COMMAND's own 1 (a bug, or hung and
# ended by the watchdog), 2 or 3, and starts it again after 42 (preempted, state saved) and after being killed.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
GCLOUD=(gcloud compute tpus)
TIER=--spot DRY='' YES='' WORKER=0 FOLLOW='' MAX_HOURS=24 DELETE_ON_EXIT=''
TRIES=5
exec 3>&2 # calls are printed here, also from within $(...)

die() {
  echo "tpu.sh: error: $1" >&2
  exit "${2:-2}"
}

run() {
  printf '+' >&3
  printf ' %q' "$@" >&3
  printf '\n' >&3
  [[ -n "$DRY" ]] || "$@" 3>&-
}

retry() {
  local try
  for ((try = 1; try <= TRIES; try++)); do
    run "$@" && return
    echo "tpu.sh: try $try of $TRIES failed" >&2
    sleep "$((POLL * try / 3))"
  done
  return 1
}

# --- What a TPU type means ---------------------------------------------------------------------------------------------

# Runtime image, number of chips and of workers (hosts). The number in v2..v4 and v5p types counts cores, two to a chip. A
# host has 4 chips, but all of them in v5e and v6e types of up to 8.
describe_type() {
  local number="${TYPE##*-}"
  [[ "$number" =~ ^[1-9][0-9]*$ ]] || die "TYPE $TYPE: expected a name that ends in a number, like v5litepod-8"
  case "$TYPE" in
    v5litepod-*) IMAGE=v2-alpha-tpuv5-lite CHIPS=$number ;;
    v6e-*) IMAGE=v2-alpha-tpuv6e CHIPS=$number ;;
    v5p-*) IMAGE=v2-alpha-tpuv5 CHIPS=$((number / 2)) ;;
    v2-* | v3-* | v4-*) IMAGE=tpu-ubuntu2204-base CHIPS=$((number / 2)) ;;
    tpu7x-*) die "TYPE $TYPE: this generation is only to be had through GKE, which this script does not speak" ;;
    *) die "TYPE $TYPE: expected v2-, v3-, v4-, v5litepod-, v5p- or v6e- and a number" ;;
  esac
  WORKERS=$(((CHIPS + 3) / 4))
  [[ "$TYPE" != v5litepod-[148] && "$TYPE" != v6e-[148] ]] || WORKERS=1
}

# --- The TPU -----------------------------------------------------------------------------------------------------------

# shellcheck disable=SC2153 # NAME and its like come from the environment
queued() { run "${GCLOUD[@]}" queued-resources "$1" "$NAME" --project="$PROJECT" --zone="$ZONE" "${@:2}"; }

# WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, FAILED, SUSPENDING, SUSPENDED ..., or ABSENT.
state() {
  local answer
  if answer="$(queued describe --format='value(state.state)' 2>&1)"; then
    echo "${answer:-UNKNOWN}"
  elif [[ "$answer" == *NOT_FOUND* || "$answer" == *"not found"* ]]; then
    echo ABSENT
  else
    die "cannot see $NAME: ${answer##*$'\n'}" 1
  fi
}

create() {
  describe_type
  echo "$TYPE: $CHIPS chips on $WORKERS workers, ${TIER#--}, for at most $MAX_HOURS hours = $((CHIPS * MAX_HOURS)) chip-hours to pay for" >&2
  ((WORKERS == 1)) || [[ -n "${WORKDIR:-}" ]] || echo "tpu.sh: warning: $WORKERS workers and no WORKDIR: training needs a folder that they share" >&2
  [[ -z "${WORKDIR:-}" ]] || run gcloud storage buckets describe "$BUCKET" --project="$PROJECT" --format='value(name)' >&2
  local found tier=()
  found="$(state)"
  case "$found" in
    ABSENT | UNKNOWN) ;;
    FAILED | SUSPENDED) queued delete --force --quiet ;;
    *) echo "$NAME exists: $found" >&2 && return ;;
  esac
  [[ "$TIER" == --on-demand ]] || tier=("$TIER")
  queued create --node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$IMAGE" \
    --valid-until-duration="${MAX_HOURS}h" ${tier[@]+"${tier[@]}"}
}

# Returns 4 where the request is dead or the time is up.
await() {
  local found end=$((SECONDS + MAX_HOURS * 3600)) pause=$POLL
  while true; do
    found="$(state)"
    [[ -z "$DRY" ]] || return 0
    echo "$(date +%T) $NAME: $found" >&2
    case "$found" in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED | ABSENT) return 4 ;;
    esac
    ((SECONDS < end)) || return 4
    sleep "$pause"
    pause=$((pause < 300 ? pause + pause / 2 : 300))
  done
}

delete() {
  if [[ -z "$YES$DRY" ]]; then
    local answer
    read -r -p "Delete TPU $NAME in $ZONE? [y/N] " answer || answer=''
    [[ "$answer" == [yY] ]] || die "not deleted"
  fi
  queued delete --force --quiet
}

# --- Its workers -------------------------------------------------------------------------------------------------------

on() { run "${GCLOUD[@]}" tpu-vm ssh "$NAME" --project="$PROJECT" --zone="$ZONE" --worker="$1" "${@:2}"; }
copy() { retry "${GCLOUD[@]}" tpu-vm scp "$1" "$NAME:$2" --project="$PROJECT" --zone="$ZONE" --worker=all; }

setup() {
  local scratch
  scratch="$(mktemp -d)"
  run git -C "$ROOT" archive --format=tar.gz --output="$scratch/graftax.tar.gz" HEAD
  copy "$scratch/graftax.tar.gz" graftax.tar.gz
  rm -r "$scratch"
  retry "${GCLOUD[@]}" tpu-vm ssh "$NAME" --project="$PROJECT" --zone="$ZONE" --worker=all --command="
    set -eu
    mkdir -p graftax && tar -xzf graftax.tar.gz -C graftax && cd graftax
    command -v python3.11 >/dev/null || { sudo apt-get -qq update && sudo apt-get -qq install -y python3.11-venv; }
    echo 'jax==$JAX' >pinned.txt
    PIP_CONSTRAINT=pinned.txt bash -c 'set -euo pipefail; source launch/setup.sh; setup \".[tpu,gcs]\"'"
}

# The run's folder on each worker holds env, command, pid, log, and exit once it has ended.
start() {
  local command scratch name
  [[ -z "${WORKDIR:-}" ]] || set -- "$@" "--config.workdir=$WORKDIR"
  printf -v command '%q ' "$@"
  scratch="$(mktemp -d)"
  (umask 077 && for name in ${PASS_ENV:-}; do printf 'export %s=%q\n' "$name" "${!name}"; done >"$scratch/env")
  {
    echo "export GRAFTAX_DISTRIBUTED=1 RUN_ID=$(printf %q "$RUN_ID") GIT_COMMIT=$(git -C "$ROOT" rev-parse HEAD)"
    echo "cd ~/graftax && export PATH=\"\$PWD/.venv/bin:\$PATH\" && exec $command"
  } >"$scratch/command"
  on all --command="mkdir -p -m 700 $FOLDER && cd $FOLDER && if kill -0 \$(cat pid 2>/dev/null) 2>/dev/null; then \
echo '$RUN_ID is running already' >&2; exit 2; fi; rm -f exit pid"
  copy "$scratch/env" "$FOLDER/env"
  copy "$scratch/command" "$FOLDER/command"
  rm -r "$scratch"
  # A session of its own: neither the end of ssh nor its signals reach the command.
  on all --command="chmod 600 $FOLDER/env && cd $FOLDER && { setsid bash -c \
'source ./env; source ./command >>log 2>&1 & echo \$! >pid; wait \$!; echo \$? >exit' </dev/null >/dev/null 2>&1 & }"
}

# Per worker: running, its exit code, or gone.
runs() {
  on all --command="cd $FOLDER 2>/dev/null && { cat exit 2>/dev/null || { kill -0 \$(cat pid 2>/dev/null) 2>/dev/null && echo running; }; } || echo gone"
}

stop() { on all --command="kill -TERM \$(cat $FOLDER/pid)"; }
logs() { on "$WORKER" --command="tail -n 200 ${FOLLOW:+-F} $FOLDER/log"; }

status() {
  local found
  found="$(state)"
  echo "$NAME: $found"
  if [[ "$found" == ACTIVE ]]; then runs; fi
}

# --- Watching over a run -----------------------------------------------------------------------------------------------

# What became of the run: "running", "lost" (TPU or process gone), "unknown" (nobody answers), or the largest exit code.
outcome() {
  local found answer
  found="$(state)" || { echo unknown && return; }
  [[ "$found" == ACTIVE ]] || { echo lost && return; }
  answer="$(runs 2>/dev/null)" || { echo unknown && return; }
  case "$answer" in
    *gone*) echo lost ;;
    *running*) echo running ;;
    *) grep -Eo '^[0-9]+$' <<<"$answer" | sort -n | tail -1 ;;
  esac
}

babysit() {
  local end=$((SECONDS + MAX_HOURS * 3600)) found
  YES=1
  [[ -z "$DELETE_ON_EXIT" ]] || trap 'queued delete --force --quiet' EXIT
  while ((SECONDS < end)); do
    create
    if await && setup && start "$@"; then
      [[ -z "$DRY" ]] || return 0
      found=running
      while [[ "$found" == running || "$found" == unknown ]] && ((SECONDS < end)); do
        sleep "$POLL"
        found="$(outcome)"
      done
      echo "$(date +%T) $RUN_ID: $found" >&2
      case "$found" in
        0 | 1 | 2 | 3) return "$found" ;; # done, or what another try would not change
        running | unknown) stop && sleep "$POLL" ;;
      esac
    fi
    sleep "$POLL"
  done
  echo "$MAX_HOURS hours are over" >&2
  delete
  return 4
}

# --- Arguments ---------------------------------------------------------------------------------------------------------

VERB="${1:-}"
case "$VERB" in
  create | wait | setup | run | logs | status | ssh | babysit | stop | delete) shift ;;
  -h | --help | help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" && exit ;;
  *) die "verb '$VERB': expected create, wait, setup, run, logs, status, ssh, babysit, stop or delete (see --help)" ;;
esac
while (($#)); do
  case "$1" in
    --spot | --on-demand | --reserved) TIER="$1" ;;
    --dry-run) DRY=1 ;;
    --yes) YES=1 ;;
    --follow) FOLLOW=1 ;;
    --delete-on-exit) DELETE_ON_EXIT=1 ;;
    --worker | --max-hours)
      [[ "${2:-}" =~ ^[0-9]+$ ]] || die "$1 ${2:-}: expected a number"
      if [[ "$1" == --worker ]]; then WORKER="$2"; else MAX_HOURS="$2"; fi
      shift ;;
    --) shift && break ;;
    *) die "option $1: not known (see --help)" ;;
  esac
  shift
done
for needed in NAME PROJECT ZONE ${PASS_ENV:-}; do [[ -n "${!needed:-}" ]] || die "$needed: not set in the environment (see --help)"; done
[[ "$VERB" != create && "$VERB" != babysit ]] || [[ -n "${TYPE:-}" ]] || die "TYPE: not set in the environment (see --help)"
[[ -n "$DRY" ]] || command -v gcloud >/dev/null || die "gcloud: not on the PATH, expected Google Cloud's command line tool"
[[ "$VERB" != run && "$VERB" != babysit ]] || (($#)) || die "$VERB: no command, expected -- COMMAND ..."
POLL="${POLL:-30}" RUN_ID="${RUN_ID:-$NAME}"
JAX="${JAX:-0.10.2}" BUCKET=''
[[ "$JAX" =~ ^[0-9.]+$ ]] || die "JAX $JAX: expected a version, like 0.10.2"
if [[ -n "${WORKDIR:-}" ]]; then
  [[ "$WORKDIR" =~ ^(gs://[a-z0-9][a-z0-9._-]+)/[^[:space:]]+$ ]] || die "WORKDIR $WORKDIR: expected gs://BUCKET/FOLDER"
  BUCKET="${BASH_REMATCH[1]}"
fi
[[ "$RUN_ID" =~ ^[A-Za-z0-9._-]+$ ]] || die "RUN_ID $RUN_ID: expected letters, digits, dots, dashes"
FOLDER=".graftax/$RUN_ID"

case "$VERB" in
  wait) await || die "$NAME did not become active" 4 ;;
  run) start "$@" ;;
  ssh) on "$WORKER" ;;
  *) "$VERB" "$@" ;;
esac
