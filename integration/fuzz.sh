#!/usr/bin/env bash
# Runs one fuzz target and prints what came of it in a line:
#
#     fuzz.sh TIME WORKERS PACKAGE TARGET
#
# What decodes nothing that makes a repository (OTHERS) gets a minute at most. GO is the
# go command.
# The exit code is 0, or 1 where an input fails, which is printed.
set -euo pipefail
OTHERS=' FuzzACLText FuzzParse '

seconds() { awk -v t="$1" 'BEGIN { u = substr(t, length(t)); print t * (u == "h" ? 3600 : u == "m" ? 60 : 1) }'; }

time=$(seconds "$1") workers=$2 package=$3 target=$4
[[ $OTHERS != *" $target "* || $time -lt 60 ]] || time=60
log=$(mktemp)
trap 'rm -f "$log"' EXIT

fuzz() { ${GO:-go} test -run '^$' -fuzz "^$target\$" -fuzztime "$1s" -fuzzminimizetime 10x -parallel "$workers" "$package" >"$log" 2>&1; }

# The fuzzing of go test sometimes takes the end of its time itself for a failure
# ("context deadline exceeded", and no failing input). The target has had its time then;
# it is run again for a moment, to end well.
status=0
fuzz "$time" || status=$?
summary=$(grep -o 'elapsed: .*' "$log" | tail -n 1)
for _ in 1 2 3; do
	if [ "$status" -eq 0 ] || grep -q 'Failing input' "$log" || ! grep -q 'context deadline exceeded' "$log"; then break; fi
	status=0
	fuzz 10 || status=$?
done
printf '%s %s: %s, %s\n' "${package##*/}" "$target" "$([ "$status" -eq 0 ] && echo ok || echo FAILED)" "$summary"
[ "$status" -eq 0 ] || { cat "$log"; exit 1; }
