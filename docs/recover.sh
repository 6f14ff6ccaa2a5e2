#!/bin/sh
# Restores one generation without mkbackup, backupfs or the index, with nothing
# but sh, zstd, jq and coreutils. docs/RECOVERY.md explains it step by step.
#
#   recover.sh REPO RECORD DIRECTORY
#
# RECORD is the number of the generation's log record; DIRECTORY is made. Run it
# as root to get owners and devices back. Exit codes: 0 done; 1 nothing restored,
# or not to the end; 4 done, but for damaged files: each is named, and not there.
set -eu
umask 077 # what only some may read is closed until it has its mode
export LC_ALL=C
[ $# -eq 3 ] || { echo "usage: recover.sh REPO RECORD DIRECTORY" >&2; exit 2; }
repo=$1 last=$2
mkdir -- "$3"
to=$(cd -- "$3" && pwd)
tab=$(printf '\t')
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
trap 'exit 130' INT TERM

record() { zstd -dcq -- "$repo/log/$(printf %012d "$1").jsonl.zst"; }

# 1. The chain: a generation holds what changed against the generation "base". Those
# before the newest checkpoint are in it, each behind a line of its own. A record is
# whole if it can be unpacked to its line "end", and has the number of its name.
checkpoint=0 records=''
for file in "$repo"/log/*.jsonl.zst; do
	if zstd -dcq -- "$file" >"$work/record" && [ "$(tail -n 1 -- "$work/record" | head -c 7)" = '{"end":' ] &&
		head -n 1 -- "$work/record" | jq -r '"\(.number) \(.kind) \(.base)"' >"$work/header" &&
		read -r n kind base <"$work/header" && [ "${file##*/}" = "$(printf %012d "$n").jsonl.zst" ]; then
		echo "$kind $base" >"$work/record-$n"
		records="$records $n"
		[ "$kind" != checkpoint ] || checkpoint=$n
	else
		echo "damaged, and left out: $file" >&2
	fi
done
: >"$work/checkpoint" >"$work/bases"
if [ "$checkpoint" -gt 0 ]; then
	record "$checkpoint" >"$work/checkpoint"
	jq -c 'select(.generation)' "$work/checkpoint" >"$work/bases"
fi
chain='' stated='' n=$last
while [ "$n" -gt "$checkpoint" ]; do
	[ -e "$work/record-$n" ] || { echo "generation $last needs log record $n, which is damaged or not there" >&2; exit 1; }
	read -r kind base <"$work/record-$n"
	[ "$kind" = generation ] || { echo "record $n is not a generation" >&2; exit 1; }
	chain="$n $chain"
	n=$base
done
while [ "$n" -gt 0 ]; do
	base=$(jq --argjson n "$n" 'select(.generation == $n).base' "$work/bases")
	[ -n "$base" ] || { echo "there is no generation $n: forgotten, or never made" >&2; exit 1; }
	stated="$n${stated:+,$stated}"
	n=$base
done

# 2. Where each content lies: hash, part, offset. The last word in the whole log
# counts, since a compaction moves contents.
for n in $records; do record "$n"; done | jq -r 'select(.content) | "\(.content) \(.part) \(.offset)"' | tac | sort -s -u -k1,1 >"$work/contents"

# 3. What the chain says, in its order: a line for each entry and each extent. A
# path or target keeps A-Z a-z 0-9 _ . - and has every other byte as \0ooo.
cat >"$work/lines.jq" <<'JQ'
def bytes: # of a text in base64
  explode | map(if . == 61 then empty elif . >= 97 then . - 71 elif . >= 65 then . - 65
                elif . >= 48 then . + 4 elif . == 43 then 62 else 63 end) as $d
  | range(0; $d | length * 6 / 8 | floor)
  | (. * 8 / 6 | floor) as $i | [16, 0, 4, 0, 1][. * 8 % 6] as $shift
  | (($d[$i] * 64 + ($d[$i + 1] // 0)) / $shift | floor) % 256;
def escape: # of a text in base64
  [bytes | if . >= 45 and . <= 57 or . >= 65 and . <= 90 or . >= 97 and . <= 122 or . == 95
           then [.] | implode
           else "\\0\(. / 64 | floor)\(. / 8 | floor % 8)\(. % 8)" end] | join("");
def text($plain; $base64):
  if $base64 then $base64 | escape
  elif $plain | test("^[A-Za-z0-9_./-]*$") then $plain
  else $plain | @base64 | escape end;
def key($plain; $base64): text($plain; $base64) | split("/") | join(" ");
# touch wants a time before 1970 as seconds back from 1970.
def time: .[0] as $s | .[1] as $n
  | if $s < 0 and $n > 0 then "-\(-1 - $s).\(2000000000 - $n | tostring[1:])"
    else "\($s).\(1000000000 + $n | tostring[1:])" end;
def extents($n): ["extent", $n, .[2], .[0], .[1]];
foreach inputs as $l ({n: 0};
  if $l.path or $l.path64 or $l.gone or $l.gone64 then .n += 1 else . end;
  .n as $n
  | if $l.path or $l.path64 then
      ["entry", key($l.path; $l.path64), $n, $l.type, $l.mode, $l.uid, $l.gid, $l.size, ($l.mtime | time),
       (if $l.group then [$l.group, $l.inode, $l.ctime] | @json | @base64 | gsub("/"; "-") else "-" end),
       (if $l.rdev then "\($l.rdev[0]) \($l.rdev[1])"
        elif $l.target or $l.target64 then text($l.target; $l.target64) else "-" end)],
      ($l.data // [] | .[] | extents($n))
    elif $l.more then $l.more[] | extents($n)
    elif $l.gone or $l.gone64 then ["entry", key($l.gone; $l.gone64), $n, "gone"]
    else empty end
  | map(tostring) | join("\t"))
JQ
{
	jq -c --argjson stated "[$stated]" 'foreach (., inputs) as $l (0; if $l.generation then $l.generation else . end;
		if IN($stated[]) then $l else empty end)' "$work/checkpoint"
	for n in $chain; do record "$n"; done
} | jq -nr -f "$work/lines.jq" | while IFS=$tab read -r kind rest; do
	case $kind in
	entry) printf '%s\n' "$rest" >&3 ;;
	extent) printf '%s\n' "$rest" >&4 ;;
	esac
done 3>"$work/entries" 4>"$work/extents"

# 4. What is alive: the last entry of a path, unless the last line says that it is
# gone, or a later line that something above it is gone or no directory any more.
# Sorted with a blank for "/", a path stands right before all that is below it.
sort -t "$tab" -k1,1 -k2,2n -- "$work/entries" >"$work/sorted"
cat >"$work/alive.jq" <<'JQ'
foreach (inputs, "/\t0") as $line ({above: [], now: null};
  ($line | split("\t")) as $f
  | .done = null
  | if .now == null or .now.key == $f[0] then .
    else
      (if .now.dead or ([.above[].kill] | max // 0) > .now.seq then . else .done = .now.line end)
      | .above += [{key: .now.key, kill: (.now.kill // 0)}]
      | .above |= map(select(.key as $k | $f[0] | startswith($k + " ")))
      | .now = null
    end
  | .now.key = $f[0] | .now.seq = ($f[1] | tonumber) | .now.line = $line | .now.dead = ($f[2] == "gone")
  | if $f[2] == "dir" then . else .now.kill = .now.seq end;
  .done // empty)
JQ
jq -nRr -f "$work/alive.jq" <"$work/sorted" >"$work/alive"

# 5. Make everything, files empty.
bytes() { # of the escaped text $1, into $out
	case $1 in
	*\\*) out=$(printf '%b.' "$1") && out=${out%.} ;;
	*) out=$1 ;;
	esac
}
path() { # of the key $1, escaped, into $path
	path=''
	for component in $1; do path=$path/$component; done
}
: >"$work/files" >"$work/links"
while IFS=$tab read -r key seq type _ _ _ size _ group target; do
	path "$key"
	[ "$type" != socket ] || { printf 'not restored: %s: a socket\n' "$path" >&2; continue; }
	bytes "$path"
	name=$to$out
	if [ "$group" != - ]; then
		first=$work/link-$(printf %s "$group" | sha256sum | head -c 64)
		if [ -e "$first" ]; then
			link=$path
			read -r path <"$first"
			bytes "$path"
			ln -P -- "$to$out" "$name"
			printf '%s %s\n' "$path" "$link" >>"$work/links"
			continue
		fi
		printf '%s\n' "$path" >"$first"
	fi
	case $type in
	dir) [ -d "$name" ] || mkdir -- "$name" ;;
	file)
		truncate -s "$size" -- "$name"
		printf '%s %s\n' "$seq" "$path" >>"$work/files"
		;;
	symlink) bytes "$target" && ln -s -- "$out" "$name" ;;
	fifo) mkfifo -- "$name" ;;
	char) mknod -- "$name" c ${target% *} ${target#* } ;;
	block) mknod -- "$name" b ${target% *} ${target#* } ;;
	esac
done <"$work/alive"

# 6. Fill the files, part after part. An extent gets the path of its file, then
# the place of its content: hash, entry, offset, length, path, part, raw offset.
tr '\t' ' ' <"$work/extents" | sort -k1,1 >"$work/by-entry"
sort -k1,1 -- "$work/files" | join -o 1.2,1.1,1.3,1.4,2.2 -- "$work/by-entry" - | sort -k1,1 >"$work/by-hash"
join -v 1 -o 1.5 -- "$work/by-hash" "$work/contents" >"$work/damaged"
[ ! -s "$work/damaged" ] || echo "the log does not say where some contents are" >&2
unpacked=''
join -- "$work/by-hash" "$work/contents" | sort -k6,6 -k7,7n >"$work/by-part"
while read -r _ _ offset length path part raw; do
	if [ "$part" != "$unpacked" ]; then
		unpacked=$part file=$repo/parts/$(printf %.2s "$part")/$part.tar.zst whole=yes
		if [ "$(sha256sum <"$file" | head -c 64)" != "$part" ]; then
			echo "damaged or not there: $file" >&2
			whole=''
		elif ! zstd -dcq -- "$file" >"$work/part"; then
			echo "cannot be unpacked: $file" >&2
			whole=''
		fi
	fi
	if [ -z "$whole" ]; then
		printf '%s\n' "$path" >>"$work/damaged"
		continue
	fi
	bytes "$path"
	dd if="$work/part" of="$to$out" bs=1M iflag=skip_bytes,count_bytes oflag=seek_bytes conv=notrunc status=none \
		skip="$raw" count="$length" seek="$offset"
done <"$work/by-part"

# 7. A file that lacks a content is removed, under all of its names.
sort -u -- "$work/damaged" >"$work/hit"
sort -k1,1 -- "$work/links" | join -o 1.2 -- - "$work/hit" | sort -- - "$work/hit" >"$work/removed"
while read -r path; do
	printf 'damaged: %s\n' "$path" >&2
	bytes "$path"
	rm -- "$to$out"
done <"$work/removed"

# 8. Owners, modes and times, what is deepest first.
tac -- "$work/alive" | while IFS=$tab read -r key _ type mode uid gid _ mtime _ _; do
	path "$key"
	bytes "$path"
	[ -e "$to$out" ] || [ -L "$to$out" ] || continue # a socket, or damaged
	if [ "$(id -u)" -eq 0 ]; then chown -h -- "$uid:$gid" "$to$out"; fi
	[ "$type" = symlink ] || chmod -- "$mode" "$to$out"
	touch -h -d "@$mtime" -- "$to$out"
done
[ ! -s "$work/removed" ] || { echo "$(wc -l <"$work/removed") damaged files, named above, were not restored; all else was" >&2; exit 4; }
