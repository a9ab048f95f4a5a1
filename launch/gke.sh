#!/usr/bin/env bash
# A job on a TPU slice of a GKE cluster, as a JobSet; kubectl's current context is the cluster.
#
#   launch/gke.sh COMMAND --name=NAME [OPTIONS] [-- JOB]
#
#   run     --bucket=BUCKET --accelerator=tpu-v5-lite-podslice --topology=4x4
#           [--chips-per-host=4] [--service-account=default] [--image=python:3.12]
#           [--max-restarts=20] [--workdir=runs/NAME] -- --config=configs/sst2.py [...]:
#           copies this code into the bucket and applies launch/jobset.yaml; a job that is there
#           is left alone
#   render  the same options: prints the manifest, changes nothing
#   logs    shows process 0 until it ends
#   fetch   --bucket=BUCKET [--workdir=runs/NAME] [--to=DIR]: copies the job's folder to DIR
#   delete  the JobSet (SIGTERM first); `run` afterwards continues the job
#
# gs://BUCKET is mounted at /mnt/icljax in every pod, the job's --workdir is /mnt/icljax/runs/NAME.
# --dry-run prints the commands.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name="" bucket="" accelerator="" topology="" chips_per_host=4 service_account=default
image=python:3.12 max_restarts=20 workdir="" to=""
parse "name bucket accelerator topology chips-per-host service-account image max-restarts workdir
  to" "" "$@"
need name
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || die "--name=$name: small letters, digits and - only"
bucket=${bucket#gs://}
workdir=${workdir:-runs/$name}
[[ $workdir != /* ]] || die "--workdir=$workdir: give a folder within the bucket, e.g. runs/$name"

check_job() {
  need bucket accelerator topology
  whole chips_per_host max_restarts
  needs_config --workdir --distributed
  [[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || die "--topology=$topology: e.g. 4x4 or 2x2x2"
  chips=$((${topology//x/*}))
  ((chips_per_host < chips)) || chips_per_host=$chips
  ((chips % chips_per_host == 0)) ||
    die "--topology=$topology has $chips chips: not a multiple of --chips-per-host=$chips_per_host"
}

# JSON strings are YAML too, whatever is in them.
quoted() {
  local arg comma=""
  for arg in "$@"; do
    arg=${arg//\\/\\\\}
    printf '%s"%s"' "$comma" "${arg//\"/\\\"}"
    comma=", "
  done
}

render() {
  local text pair
  text=$(< "$root/launch/jobset.yaml")
  for pair in NAME="$name" BUCKET="$bucket" ACCELERATOR="$accelerator" TOPOLOGY="$topology" \
    HOSTS="$((chips / chips_per_host))" CHIPS="$chips_per_host" IMAGE="$image" \
    SERVICE_ACCOUNT="$service_account" MAX_RESTARTS="$max_restarts" \
    ARGS="$(quoted "${args[@]}" --workdir="/mnt/icljax/$workdir" --distributed)"; do
    text=${text//"@${pair%%=*}@"/"${pair#*=}"}
  done
  printf '%s\n' "$text"
}

submit() {
  local folder=.
  [[ -n $dry_run ]] || folder=$(mktemp -d)
  pack "$folder/$name.tar.gz"
  run gcloud storage cp "$folder/$name.tar.gz" "gs://$bucket/code/$name.tar.gz"
  if [[ -n $dry_run ]]; then
    show kubectl apply --filename=-
    render
  else
    render | run kubectl apply --filename=-
    rm -r "$folder"
  fi
}

selector=jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0
case $command in
  run) check_job && submit ;;
  render) check_job && render ;;
  logs) run kubectl logs --selector="$selector" --container=main --tail=-1 --follow ;;
  fetch)
    need bucket
    to=${to:-results/$name}
    run mkdir -p "$to"
    run gcloud storage rsync --recursive "gs://$bucket/$workdir" "$to"
    ;;
  delete) run kubectl delete jobset "$name" --ignore-not-found ;;
  "") die "no command; see --help" ;;
  *) die "unknown command $command; see --help" ;;
esac
