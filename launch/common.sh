# shellcheck shell=bash
# Shared by the scripts of this folder, which source it. A script declares its options as variables
# with their defaults (--node-pool=X is $node_pool) and its help as the comment under its first line.

dry_run=""
command=""
args=()
root=$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# die MESSAGE: a user's mistake, in one line.
die() {
  echo "launch/${0##*/}: error: $*" >&2
  exit 2
}

usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

# parse "OPTIONS" "FLAGS" ARGUMENTS: sets $command, a variable for each option, and `args`, what
# follows --. Options take --name=value; flags take no value.
parse() {
  local _options=" $1 " _flags=" $2 dry-run " _name # no script has such an option
  shift 2
  while (($#)); do
    _name=${1#--}
    _name=${_name%%=*}
    case $1 in
      --) args=("${@:2}") && return ;;
      --help | -h) usage && exit 0 ;;
      --*=*)
        [[ $_options == *" $_name "* ]] || die "unknown option --$_name; see --help"
        printf -v "${_name//-/_}" %s "${1#*=}"
        ;;
      --*)
        [[ $_options != *" $_name "* ]] || die "--$_name needs a value: --$_name=VALUE"
        [[ $_flags == *" $_name "* ]] || die "unknown option --$_name; see --help"
        printf -v "${_name//-/_}" 1
        ;;
      *)
        [[ -z $command ]] || die "unexpected argument $1 after $command; the job's go after --"
        command=$1
        ;;
    esac
    shift
  done
}

# need OPTION...: these were given.
need() {
  local option
  for option in "$@"; do
    [[ -n ${!option} ]] || die "--${option//_/-}=VALUE is needed; see --help"
  done
}

# whole OPTION...: these are whole numbers, at least 1.
whole() {
  local option
  for option in "$@"; do
    [[ ${!option} =~ ^[1-9][0-9]*$ ]] || die "--${option//_/-}=${!option} is not a whole number from 1"
  done
}

# needs_config OPTION...: the job's own arguments hold a config, and none of these, which the script
# itself adds.
needs_config() {
  local arg option
  [[ " ${args[*]} " == *" --config="* ]] || die "no --config=FILE after --; see --help"
  for arg in "${args[@]}"; do
    for option in "$@"; do
      [[ ${arg%%=*} != "$option" ]] || die "$arg after --: the script itself gives $option"
    done
  done
}

# show COMMAND...: prints it as it could be typed.
show() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
}

# run COMMAND...: prints it, and runs it unless this is a dry run.
run() {
  show "$@"
  [[ -n $dry_run ]] || "$@"
}

# pack FILE: this working tree's code and configs as a tar archive, uncommitted changes included.
pack() {
  run tar --exclude=__pycache__ -czf "$1" -C "$root" pyproject.toml README.md LICENSE icljax configs
}
