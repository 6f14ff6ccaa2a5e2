#!/usr/bin/env bash
# Runs a part of make soak:
#
#     soak.sh LOG COMMAND...
#
# The output of the command goes to LOG. Printed are its beginning and its end: how long it
# took, and of the output what was tried and found; all of the last 100 lines if it failed.
set -uo pipefail

log=$1
shift
name=$(basename "$log" .log)
printf '=== %s began, %(%T)T\n' "$name" -1
mkdir -p "$(dirname "$log")"
TIMEFORMAT='%R %U %S'
status=0
took=$({ time "$@" >"$log" 2>&1; } 2>&1) || status=$?
result=ok
[ "$status" -eq 0 ] || result=FAILED
{
	printf '=== %s %s, %(%T)T: ' "$name" "$result" -1
	awk '{ printf "%.1f minutes, %.1f minutes of CPU time\n", $1 / 60, ($2 + $3) / 60 }' <<<"$took"
	grep -E '^(--- |[a-z]+ Fuzz)|^ +[a-z_]+_test\.go:[0-9]+: ' "$log"
	[ "$status" -eq 0 ] || tail -n 100 "$log"
} | sed "s|^|$name: |; s|^$name: ===|===|"
exit "$status"
