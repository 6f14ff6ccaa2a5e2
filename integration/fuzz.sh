#!/usr/bin/env bash
# Runs one fuzz target and prints what came of it in a line:
#
#     fuzz.sh TIME WORKERS PACKAGE TARGET
#
# What decodes nothing that makes a repository (OTHERS) gets a minute at most. GO is the
# go command.
# The exit code is 0, or 1 where an input fails or takes too long (internal/watchdog), or fewer
# than LEAST inputs were executed for each second; what go test said is printed then.
set -euo pipefail
OTHERS=' FuzzACLText FuzzParse '
LEAST=10

seconds() { awk -v t="$1" 'BEGIN { u = substr(t, length(t)); print t * (u == "h" ? 3600 : u == "m" ? 60 : 1) }'; }

time=$(seconds "$1") workers=$2 package=$3 target=$4
[[ $OTHERS != *" $target "* || $time -lt 60 ]] || time=60
log=$(mktemp)
trap 'rm -f "$log"' EXIT

result=ok status=0
${GO:-go} test -run '^$' -fuzz "^$target\$" -fuzztime "${time}s" -fuzzminimizetime 10x -parallel "$workers" "$package" >"$log" 2>&1 || status=$?
# The fuzzing of go test sometimes takes the end of its time itself for a failure: that
# it has no other is seen by all that it says.
if [ "$status" -ne 0 ] && [ "$(grep -v -e '^fuzz: elapsed: ' -e '^FAIL' -e '^exit status' "$log" | sed 's/ (.*s)$//')" = "--- FAIL: $target
    context deadline exceeded" ]; then
	result='ok, but for the end of its time, which go test takes for a failure' status=0
fi
# Inputs that are kept from earlier runs come first, and are executed as well.
executed=$(sed -nE 's/^fuzz: elapsed: .*(execs: |coverage: )([0-9]+).*/\2/p' "$log" | sort -n | tail -n 1)
if [ "$status" -eq 0 ] && [ "${executed:-0}" -lt "$((LEAST * time))" ]; then
	result="FAILED: ${executed:-0} inputs in $time s" status=1
elif [ "$status" -ne 0 ]; then
	result=FAILED
fi
printf '%s %s: %s, %s\n' "${package##*/}" "$target" "$result" "$(grep -o 'elapsed: .*' "$log" | tail -n 1)"
[ "$status" -eq 0 ] || { cat "$log"; exit 1; }
