#!/usr/bin/env bash
# What each host of a TPU pod does; launch/tpu_pod.sh copies this script to them and calls it.
#
#   tpu_worker.sh setup BUCKET | run ARGUMENTS | logs | stop
#
# Everything is in ~/icljax; the bucket is mounted at /mnt/icljax.
set -euo pipefail
home=$HOME/icljax
mount=/mnt/icljax

setup() {
  mkdir -p "$home"
  rm -rf "$home/src" && mkdir "$home/src"
  tar -xzf "$HOME/icljax.tar.gz" -C "$home/src"
  if [[ ! -x $home/venv/bin/python ]]; then
    # The images carry Python 3.10. uv brings one; --seed: icljax fetches its data with pip.
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --seed --python 3.12 "$home/venv"
  fi
  "$home/venv/bin/pip" install --quiet --editable "$home/src[tpu]"
  command -v gcsfuse > /dev/null || install_gcsfuse
  mount_bucket "$1"
}

install_gcsfuse() {
  local apt=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL "$apt/doc/apt-key.gpg" | sudo tee "$key" > /dev/null
  echo "deb [signed-by=$key] $apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  sudo apt-get update -qq
  # A new machine is often still busy with its first upgrades.
  sudo apt-get install -qq -o DPkg::Lock::Timeout=600 gcsfuse > /dev/null
}

mount_bucket() {
  if mountpoint -q "$mount"; then
    [[ $(findmnt -no SOURCE "$mount") == "$1" ]] && return
    echo "$mount holds another bucket than $1: 'fusermount -u $mount' on every host first" >&2
    return 2
  fi
  sudo mkdir -p "$mount"
  sudo chown "$(id -u):$(id -g)" "$mount"
  # No cache of what exists: a host must see at once what process 0 has committed.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "$1" "$mount"
}

# The lock is held by the job as long as any of its processes lives, and a reboot frees it.
running() { ! flock --nonblock "$home/lock" true; }

run() {
  [[ -d $home/src ]] || { echo "$(hostname): nothing is set up here: 'setup' first" >&2 && return 2; }
  if running; then
    echo "$(hostname): the job runs already"
    return
  fi
  rm -f "$home/exit"
  [[ ! -e $home/log ]] || mv "$home/log" "$home/log.previous"
  # In a session of its own: the end of the ssh connection does not reach it.
  setsid nohup flock --timeout 5 "$home/lock" bash "$0" job "$@" > "$home/log" 2>&1 < /dev/null &
  until [[ -e $home/exit ]] || running; do sleep 0.1; done
  echo "$(hostname): the job has started"
}

job() {
  local status=0
  cd "$home/src"
  "$home/venv/bin/python" -m icljax.main "$@" &
  echo $! > "$home/pid"
  wait $! || status=$?
  echo "$status" > "$home/exit"
}

logs() {
  [[ -e $home/log ]] || { echo "$(hostname): no job was started here" >&2 && return 2; }
  tail --lines=+1 --follow "$home/log" &
  while running; do sleep 1; done
  sleep 1 # tail prints the last lines
  kill $!
  [[ -e $home/exit ]] || { echo "$(hostname): the job was killed" >&2 && return 1; }
  return "$(cat "$home/exit")"
}

stop() {
  if running; then kill -TERM "$(cat "$home/pid")"; fi
}

"$@"
