#!/usr/bin/env bash
# Several processes of one job on this machine, over 127.0.0.1.
#
#   launch/local.sh PROCESSES [--port=PORT] [--logs=DIR] [--python=PYTHON] [--grace=SECONDS]
#                   [--dry-run] -- --config=configs/sst2.py --workdir=DIR [...]
#
# Process 0 prints here, the others into DIR/process-I.log (default: a new temporary folder).
# When one fails, the others get SIGTERM, after --grace seconds (default 20) SIGKILL, and the script
# exits with the first one's code. SIGTERM and Ctrl-C are passed on: every process commits its
# chunk, and the same command continues. --python (default $ICLJAX_PYTHON, else python) runs it.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

port="" logs="" python=${ICLJAX_PYTHON:-python} grace=20
parse "port logs python grace" "" "$@"
[[ $command =~ ^[1-9][0-9]*$ ]] || die "the number of processes is needed first; see --help"
whole grace
needs_config --coordinator --num_processes --process_id --distributed
processes=$command

job() {
  run "$python" -m icljax.main "${args[@]}" --coordinator="127.0.0.1:${port:-PORT}" \
    --num_processes="$processes" --process_id="$1"
}

if [[ -n $dry_run ]]; then
  for ((i = 0; i < processes; i++)); do job "$i"; done
  exit 0
fi

[[ -n $port ]] || port=$("$python" -c \
  'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
[[ -n $logs ]] || logs=$(mktemp -d)
mkdir -p "$logs"
pids=()
stop() { kill -TERM "${pids[@]}" 2> /dev/null || true; }
trap stop TERM INT
for ((i = 0; i < processes; i++)); do
  (
    ((i == 0)) || exec > "$logs/process-$i.log" 2>&1
    run() { exec "$@"; } # the process itself, not a shell around it, gets the signals
    job "$i"
  ) < /dev/null &
  pids+=($!)
done
((processes == 1)) || echo "local.sh: the other processes print into $logs" >&2

status=0
running=("${pids[@]}")
while ((${#running[@]})); do
  code=0
  wait -n -p ended "${running[@]}" || code=$?
  [[ -n ${ended:-} ]] || continue # a signal ended the wait, not a process
  left=()
  for pid in "${running[@]}"; do [[ $pid == "$ended" ]] || left+=("$pid"); done
  running=("${left[@]}")
  if ((code && !status)); then
    status=$code
    for i in "${!pids[@]}"; do [[ ${pids[i]} != "$ended" ]] || failed=$i; done
    ((failed == 0)) || tail -n 5 "$logs/process-$failed.log" >&2
    echo "local.sh: process $failed ended with exit code $code: stopping the others" >&2
    stop
    (sleep "$grace" && kill -KILL "${pids[@]}") > /dev/null 2>&1 &
    killer=$!
  fi
done
[[ -z ${killer:-} ]] || kill "$killer" 2> /dev/null || true
exit "$status"
