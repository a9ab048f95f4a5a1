#!/usr/bin/env bash
# A Cloud TPU pod, from nothing to the results, by queued resources.
#
#   launch/tpu_pod.sh COMMAND --name=NAME --zone=ZONE [--project=PROJECT] [OPTIONS] [-- JOB]
#
#   create  --accelerator-type=v5litepod-16 [--runtime-version=V] [--spot]: asks for the pod;
#           nothing to do where it is there or on its way; one that was preempted is replaced
#   wait    until it is ACTIVE [--poll=SECONDS]
#   setup   --bucket=BUCKET: this code and its requirements on every host, gs://BUCKET mounted at
#           /mnt/icljax
#   run     [--workdir=runs/NAME] -- --config=configs/sst2.py [...]: starts the job on every host,
#           in the background; a job that runs is left alone, one that was stopped is continued
#   logs    shows process 0 until the job ends, and exits with the job's code
#   stop    SIGTERM: the job commits its chunk and ends with code 75
#   fetch   --bucket=BUCKET [--workdir=runs/NAME] [--to=DIR]: copies the job's folder to DIR
#   delete  the pod (nothing to do where there is none); the bucket stays
#   all     all of these in order (but stop); the pod is deleted only if the job succeeded
#
# The job's --workdir is /mnt/icljax/runs/NAME, in the bucket. --dry-run prints the commands.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="" zone="" project="" accelerator_type="" runtime_version="" spot="" bucket="" workdir=""
to="" poll=30 state=""
parse "name zone project accelerator-type runtime-version bucket workdir to poll" spot "$@"
need name zone
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || die "--name=$name: small letters, digits and - only"
whole poll
bucket=${bucket#gs://}
workdir=${workdir:-runs/$name}
[[ $workdir != /* ]] || die "--workdir=$workdir: give a folder within the bucket, e.g. runs/$name"
where=(--zone="$zone" ${project:+"--project=$project"})
tpus=(gcloud compute tpus)

# Sets $state: the request's state, empty where there is none.
query_state() {
  local list=("${tpus[@]}" queued-resources list "${where[@]}" --filter="name~\"(^|/)$name\$\""
    --format="value(state.state)")
  if [[ -n $dry_run ]]; then show "${list[@]}"; else state=$("${list[@]}"); fi
}

on_hosts() { # on_hosts WORKER ARGUMENTS...: tpu_worker.sh there
  local remote
  printf -v remote '%q ' bash icljax_worker.sh "${@:2}"
  run "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" --worker="$1" --quiet --command="${remote% }"
}

runtime() {
  case $accelerator_type in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

create() {
  need accelerator_type
  query_state
  case $state in
    "") ;;
    FAILED | SUSPENDING | SUSPENDED) delete ;;
    *) echo "tpu_pod.sh: $name is there: $state" && return ;;
  esac
  run "${tpus[@]}" queued-resources create "$name" "${where[@]}" --node-id="$name" \
    --accelerator-type="$accelerator_type" --runtime-version="${runtime_version:-$(runtime)}" \
    ${spot:+--spot}
}

wait_active() {
  query_state
  until [[ $state == ACTIVE || -n $dry_run ]]; do
    case $state in
      "") die "there is no $name in $zone: create it first" ;;
      FAILED | SUSPENDING | SUSPENDED)
        echo "tpu_pod.sh: $name is $state: 'create' asks for it again" >&2
        exit 1
        ;;
    esac
    echo "tpu_pod.sh: $name: $state"
    sleep "$poll"
    query_state
  done
}

setup() {
  need bucket
  local archive=icljax.tar.gz
  [[ -n $dry_run ]] || archive=$(mktemp -d)/$archive
  pack "$archive"
  run "${tpus[@]}" tpu-vm scp "$archive" "$name:icljax.tar.gz" "${where[@]}" --worker=all --quiet
  run "${tpus[@]}" tpu-vm scp "$root/launch/tpu_worker.sh" "$name:icljax_worker.sh" "${where[@]}" \
    --worker=all --quiet
  on_hosts all setup "$bucket"
  [[ -n $dry_run ]] || rm -r "${archive%/*}"
}

start() {
  needs_config --workdir --distributed
  on_hosts all run "${args[@]}" --workdir="/mnt/icljax/$workdir" --distributed
}

fetch() {
  need bucket
  to=${to:-results/$name}
  run mkdir -p "$to"
  run gcloud storage rsync --recursive "gs://$bucket/$workdir" "$to" ${project:+"--project=$project"}
}

delete() {
  query_state
  if [[ -z $state && -z $dry_run ]]; then
    echo "tpu_pod.sh: there is no $name in $zone"
  else
    run "${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet
  fi
}

all() {
  need accelerator_type bucket
  needs_config --workdir --distributed
  create
  wait_active
  setup
  start
  local code=0
  on_hosts 0 logs || code=$?
  fetch || ((code)) # a job that failed early has left nothing to fetch
  if ((code)); then
    echo "tpu_pod.sh: the job ended with code $code; the pod is kept. The same command continues" \
      "the job; 'delete' ends the pod, and its cost." >&2
    exit "$code"
  fi
  delete
}

case $command in
  create | setup | fetch | delete | all) "$command" ;;
  wait) wait_active ;;
  run) start ;;
  logs) on_hosts 0 logs ;;
  stop) on_hosts all stop ;;
  "") die "no command; see --help" ;;
  *) die "unknown command $command; see --help" ;;
esac
