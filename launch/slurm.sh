#!/usr/bin/env bash
# Submits a job to Slurm: one process a GPU (a node, with --gpus=0), found by jax.distributed.
#
#   launch/slurm.sh --nodes=N [--gpus=PER_NODE] [--partition=P] [--time=LIMIT] [--account=A]
#                   [--cpus-per-task=N] [--name=icljax] [--max-restarts=20] [--python=PYTHON]
#                   [--dry-run] -- --config=configs/sst2.py --workdir=SHARED_DIR [...]
#
# 90 seconds before the time limit every process gets SIGTERM, commits its chunk and exits with 75;
# the job then requeues itself and continues, as it does after the loss of a node (76). A job of
# this name that is queued or runs already is left alone. sbatch's own SBATCH_* variables apply too.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

nodes="" gpus=0 partition="" time="" account="" cpus_per_task="" name=icljax max_restarts=20
python=${ICLJAX_PYTHON:-python}
parse "nodes gpus partition time account cpus-per-task name max-restarts python" "" "$@"
[[ -z $command ]] || die "unexpected argument $command; the job's own go after --"
need nodes
whole nodes max_restarts
[[ $gpus == 0 ]] || whole gpus
needs_config --distributed
[[ " ${args[*]} " == *" --workdir="* ]] || die "no --workdir=DIR (a folder all nodes see) after --"
python=$(command -v "$python") || die "$python is not on PATH; give --python=PATH"

# JAX gives each Slurm task the one GPU of its local number, so a task needs to see all of its
# node's: no --gpus-per-task here.
options=(--job-name="$name" --nodes="$nodes" --ntasks-per-node="$((gpus > 0 ? gpus : 1))"
  --signal=TERM@90 --requeue --open-mode=append --output="$name-%j.log" --chdir="$PWD")
((gpus == 0)) || options+=(--gpus-per-node="$gpus")
[[ -z $partition ]] || options+=(--partition="$partition")
[[ -z $time ]] || options+=(--time="$time")
[[ -z $account ]] || options+=(--account="$account")
[[ -z $cpus_per_task ]] || options+=(--cpus-per-task="$cpus_per_task")
task=(srun --kill-on-bad-exit=0 --wait=120 ${cpus_per_task:+"--cpus-per-task=$cpus_per_task"}
  "$python" -m icljax.main "${args[@]}" --distributed)

script() {
  cat << EOF
#!/bin/bash
status=0
$(printf '%q ' "${task[@]}") || status=\$?
if ((status == 75 || status == 76)) && ((\${SLURM_RESTART_COUNT:-0} < $max_restarts)); then
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$status"
EOF
}

queued=(squeue --me --noheader --name="$name" --format=%i)
if [[ -n $dry_run ]]; then
  show "${queued[@]}"
  show sbatch "${options[@]}"
  script
  exit 0
fi
ids=$("${queued[@]}")
if [[ -n $ids ]]; then
  echo "slurm.sh: $name is queued or runs already: job $ids"
  exit 0
fi
script | run sbatch "${options[@]}"
