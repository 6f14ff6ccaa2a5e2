#!/usr/bin/env bash
# Shows the main job on a real tree: the Go toolchain's own source, backed up
# three times with real edits in between, mounted, compared and restored. Needs
# root. Leaves nothing behind, also when a step fails.
#
#   demo.sh BIN      BIN is the directory of mkbackup and backupfs
set -euo pipefail
export LC_ALL=C.UTF-8 TZ=UTC
bin=$(cd "${1:?usage: demo.sh BIN}" && pwd)
export PATH="$bin:$PATH"

work=$(mktemp -d /tmp/backupfs-demo-XXXXXX)
cleanup() {
	code=$?
	cd /
	if mountpoint -q "$work/backups"; then umount "$work/backups" || umount -l "$work/backups"; fi
	rm -rf "$work"
	[ "$code" -eq 0 ] || echo "demo: failed with exit code $code" >&2
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
show() { # prints a command and runs it
	printf '$ %s\n' "$*"
	"$@"
}
# A second between two generations, so that their names differ in the seconds.
pause() { sleep 1.1; }

say "A real tree: the source of the Go toolchain."
cp -a "$(go env GOROOT)/src" "$work/src"
cd "$work"
printf '%s files, %s\n' "$(find src -type f | wc -l)" "$(du -sh --apparent-size src | cut -f1)"

say "Make a repository and the first generation."
show mkbackup init repo
show mkbackup create repo --root src /
pause

say "Edit: a patched file, a new package, a renamed one, a mode, a deleted tree. Second generation."
sed -i 's/Println formats/Println (patched) formats/' src/fmt/print.go
mkdir src/demo
printf 'package demo\n\n// Answer is 42.\nconst Answer = 42\n' >src/demo/demo.go
ln src/demo/demo.go src/demo/same-file.go
ln -s ../fmt src/demo/fmt
mv src/container/ring src/container/circle
chmod 0750 src/cmd
rm -r src/archive/zip
show mkbackup create repo --root src / -q -v
pause

say "Edit again, a large file among it. Third generation."
cat src/net/http/*.go src/runtime/*.go >src/demo/large.txt
echo '// the end' >>src/demo/demo.go
rm src/demo/fmt
mkdir src/demo/fmt
show mkbackup create repo --root src /
pause

say "A run without any change reads nothing and adds one log record."
show mkbackup create repo --root src /

say "The generations, and what lies on disk."
show mkbackup list repo
show du -sh --apparent-size repo/parts repo/log repo/index
show mkbackup check repo

say "Mount: every generation is a plain directory."
mkdir backups restored
show backupfs repo backups
show ls -l backups
mapfile -t gens < <(find backups -mindepth 1 -maxdepth 1 -type d -name '2*' | sort)
show ls -l backups/latest/demo
show df -h backups

say "What changed from the first to the second generation."
printf '$ diff -rq %s %s\n' "${gens[0]}" "${gens[1]}"
diff -rq --no-dereference "${gens[0]}" "${gens[1]}" || [ $? -eq 1 ]
printf '$ diff -u {%s,%s}/fmt/print.go\n' "${gens[0]}" "${gens[1]}"
diff -u "${gens[0]}/fmt/print.go" "${gens[1]}/fmt/print.go" || [ $? -eq 1 ]

say "Restore with cp -a, and let rsync compare it with the source: no line means no difference."
show cp -a backups/latest/. restored/
for pair in "src/ restored/" "restored/ src/" "src/ backups/latest/" "backups/latest/ src/"; do
	read -r from to <<<"$pair"
	printf '$ rsync -aAXHn --checksum --delete --itemize-changes %s %s\n' "$from" "$to"
	differences=$(rsync -aAXHn --checksum --delete --itemize-changes "$from" "$to")
	[ -z "$differences" ] || { printf '%s\n' "$differences"; exit 1; }
done

say "Standard tools read the parts."
part=$(find repo/parts -type f | head -n 1)
printf '$ sha256sum %s\n%s\n' "$part" "$(sha256sum "$part" | cut -d' ' -f1)"
printf '$ zstd -dc %s | tar tv | head -n 3\n' "$part"
zstd -dc "$part" 2>/dev/null | tar tv 2>/dev/null | head -n 3 || true

say "Unmount."
show umount backups
say "Done."
