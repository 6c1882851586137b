#!/usr/bin/env bash
# Runs a compiler and appends "cpu seconds, peak kilobytes, source" to a table: timed_compile.sh TABLE COMPILER ARGS...
# Processor seconds, not wall seconds: they stay the same on a busy machine.
set -uo pipefail
table=$1
shift

source_file=""
previous=""
for argument in "$@"; do
  [[ $previous == -c ]] && source_file=$argument
  previous=$argument
done
[[ -n $source_file ]] || exec "$@"  # a link or a question to the compiler

measured=$(mktemp)
trap 'rm -f "$measured"' EXIT
if gnu_time=$(type -P time); then
  "$gnu_time" --quiet -o "$measured" -f '%U %S %M' "$@"
  status=$?
  read -r user system peak_kb <"$measured"
elif type -P python3 >/dev/null; then
  python3 - "$measured" "$@" <<'PYTHON'
import resource, subprocess, sys
status = subprocess.call(sys.argv[2:], stdin=subprocess.DEVNULL)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as out:
    print(usage.ru_utime, usage.ru_stime, usage.ru_maxrss, file=out)
sys.exit(status if status >= 0 else 128 - status)
PYTHON
  status=$?
  read -r user system peak_kb <"$measured"
else
  echo "timed_compile.sh: found neither GNU time nor python3; to record compile times: apt-get install time" >&2
  exit 2
fi

if [[ $status == 0 ]]; then  # a failed compilation says nothing about time
  awk -v user="$user" -v system_time="$system" -v peak="$peak_kb" -v file="$source_file" \
    'BEGIN { printf "%.2f\t%d\t%s\n", user + system_time, peak, file }' >>"$table"
fi
exit "$status"
