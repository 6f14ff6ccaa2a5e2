# GNU make. `make help` says what there is.

GO            ?= go
VERSION       := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS       := -s -w -X main.version=$(VERSION)
# A Debian version begins with a digit and has no "-" of its own.
DEBVERSION    := $(shell git describe --tags --match 'v[0-9]*' 2>/dev/null | sed 's/^v//; s/-/+/g' | grep . || echo 0.0.0+$(VERSION) | tr - +)
PREFIX        ?= /usr/local
DOCS          := README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md LICENSE
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK   := golang.org/x/vuln/cmd/govulncheck@v1.9.0
# The database of known vulnerabilities, or a copy of it: file:///srv/vulndb
VULNDB        ?= https://vuln.go.dev

# Packages of the product; the integration tests run the built programs, so the
# race detector has nothing to see there.
UNITS     = $(shell $(GO) list ./... | grep -v /integration)
FUZZTIME    ?= 12s
FUZZJOBS    ?= 1
FUZZWORKERS ?= $(shell nproc)
# What make soak runs in full: damage of every kind; kills, power cuts; faults; full disks; a year.
SOAK_attacks := TestEveryBit|TestRandomFlips|TestManyFlips|TestTruncation|TestMisplaced|TestIndexDamage|TestHostileRepositories|TestTenGenerations|TestBorder|TestSwappedForOutside
SOAK_kills   := TestKilledAt|TestPowerCut
SOAK_faults  := TestFaultAtEvery|TestSourceFaultAtEveryCall
SOAK_room    := TestNoRoom
SOAK_life    := TestServersLife|TestBooted
SOAK_RUN     ?= $(SOAK_attacks)|$(SOAK_kills)|$(SOAK_faults)|$(SOAK_room)|$(SOAK_life)
# Its lanes run at the same time, the parts of each one after the other.
SOAK_lane1 := life crashes
SOAK_lane2 := kills
SOAK_lane3 := attacks
SOAK_lane4 := faults
SOAK_lane5 := room decoders
TESTFLAGS ?=

# Programs that the tests call, and the Debian packages that hold them.
TOOLS    := attr git ionice getfacl jq rsync zstd fusermount3 strace mkfs.ext4 mkfs.xfs setpriv prlimit mount gcc bsdtar make file man systemd-analyze dpkg-deb smbd smbclient /usr/lib/*/samba/vfs/shadow_copy2.so fish zsh /usr/share/bash-completion/bash_completion
PACKAGES := attr acl git jq rsync zstd fuse3 strace e2fsprogs xfsprogs util-linux mount gcc libc6-dev libarchive-tools make file man-db systemd dpkg samba samba-vfs-modules smbclient fish zsh bash-completion

# What the benchmarks compare with, and the tree that they measure.
BENCH_TOOLS    := restic borg mksquashfs squashfuse tar xz rsync zstd fusermount strace mkfs.ext4 mount /usr/src/linux-source-6.1.tar.xz
BENCH_PACKAGES := restic borgbackup squashfs-tools squashfuse tar xz-utils rsync zstd fuse3 strace e2fsprogs mount linux-source-6.1
BENCHFLAGS     ?=
SCALEFLAGS     ?= -cost docs

.DELETE_ON_ERROR:
.PHONY: all build deps test test-units test-integration soak soak-decoders soak-tests soak-attacks soak-kills soak-faults soak-room soak-life soak-crashes mutants race fuzz lint vet vulncheck demo bench bench-scale bench-churn bench-deps install uninstall deb clean help

all: build ## the same as build

build: ## both programs, static, into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/mkbackup ./cmd/backupfs

deps: ## install the programs that the tests call, where one is missing (needs root)

bench-deps: ## install the programs that the benchmarks compare with, likewise
bench-deps: TOOLS = $(BENCH_TOOLS)
bench-deps: PACKAGES = $(BENCH_PACKAGES)

# samba has services: where apt would start them, this says no, while it runs.
POLICY := /usr/sbin/policy-rc.d

deps bench-deps:
	@missing=; for tool in $(TOOLS); do \
		[ -f "$$tool" ] || PATH=$$PATH:/usr/sbin:/sbin command -v $$tool >/dev/null || missing="$$missing $$tool"; \
	done; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" -ne 0 ]; then \
		echo "missing:$$missing: as root, run: apt-get install $(PACKAGES)" >&2; exit 1; \
	fi; \
	echo "installing, for$$missing:"; \
	if [ ! -e $(POLICY) ]; then \
		trap 'rm -f $(POLICY)' EXIT; trap 'exit 1' INT TERM; \
		printf '#!/bin/sh\nexit 101\n' >$(POLICY) && chmod 755 $(POLICY); \
	fi; \
	apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $(PACKAGES) >/dev/null

test: deps test-units test-integration ## all tests, units and integration (needs root)

test-units: ## tests of the packages
	$(GO) test $(TESTFLAGS) $(UNITS)

test-integration: deps ## the real programs, mounts and tools (needs root)
	$(GO) test $(TESTFLAGS) -count=1 -p 1 -timeout 25m ./integration/...

soak: deps ## all that follows in full, each decoder fuzzed for 10 minutes: an hour on two cores; logs in bin/soak (needs root)
	rm -rf bin/soak
	$(MAKE) -k -j5 soak-lane1 soak-lane2 soak-lane3 soak-lane4 soak-lane5

soak-lane%:
	@status=0; for part in $(SOAK_lane$*); do integration/soak.sh bin/soak/$$part.log $(MAKE) soak-$$part || status=1; done; exit $$status

soak-decoders: ## each decoder fuzzed for 10 minutes, three at a time, with what the tests leave of the cores
	nice -n 10 $(MAKE) fuzz FUZZTIME=10m FUZZJOBS=3 FUZZWORKERS=1

# SOAK_RUN='TestPowerCut' runs a part: make soak-tests SOAK_RUN=...
soak-tests: deps ## the tests below in full, or those of SOAK_RUN
	SOAK=1 $(GO) test $(TESTFLAGS) -tags soak -count=1 -timeout 2h -v -run '^($(SOAK_RUN))' ./integration

soak-attacks soak-kills soak-faults soak-room:
	$(MAKE) soak-tests SOAK_RUN='$(SOAK_$(@:soak-%=%))'

soak-life: ## a server's year, before what else wants the cores: no more than a quarter of an hour
	nice -n -10 $(MAKE) soak-tests SOAK_RUN='$(SOAK_life)'

soak-crashes: ## crashes behind every operation, on a model of a disk
	SOAK=1 $(GO) test $(TESTFLAGS) -count=1 -timeout 2h -v ./integration/crashes

mutants: ## each fsync is left out in turn: a crash of the model must show it
	$(GO) test $(TESTFLAGS) -count=1 -v -run TestLostSyncs ./integration/crashes

race: ## tests of the packages under the race detector
	CGO_ENABLED=1 $(GO) test -race $(UNITS)

# FUZZJOBS targets run at a time, with FUZZWORKERS each.
fuzz: ## every fuzz target for FUZZTIME (12s)
	@set -eu; targets=; \
	for package in $(UNITS); do \
		list=$$($(GO) test -list '^Fuzz' $$package) || { echo "$$list" >&2; exit 1; }; \
		for target in $$(echo "$$list" | grep '^Fuzz' || true); do targets="$$targets$$package $$target\n"; done; \
	done; \
	[ -n "$$targets" ] || { echo 'no fuzz target found' >&2; exit 1; }; \
	printf "$$targets" | GO='$(GO)' xargs -L 1 -P $(FUZZJOBS) integration/fuzz.sh $(FUZZTIME) $(FUZZWORKERS)

lint: ## golangci-lint: .golangci.yml, the layers of imports included
	$(GO) run $(GOLANGCI_LINT) run ./...

vet: ## go vet
	$(GO) vet -tags soak ./...

vulncheck: ## govulncheck: known vulnerabilities of what the programs call (needs the database at VULNDB)
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; status=0; \
	$(GO) run $(GOVULNCHECK) -db $(VULNDB) ./... 2>"$$log" || status=$$?; \
	cat "$$log" >&2; \
	! grep -q 'fetching vulnerabilities' "$$log" || echo "NOTHING WAS CHECKED: the database $(VULNDB) cannot be reached; VULNDB= names a copy" >&2; \
	exit $$status

demo: build deps ## back up the Go source three times, mount, compare, restore (needs root)
	@integration/demo.sh bin

# BENCHFLAGS='-only create,tar -quick -tree linux' selects rows and trees.
bench: build bench-deps ## side by side with tar, zstd, squashfs, restic, borg: ratios and targets (needs root; 20 minutes, 12 GiB of memory)
	$(GO) run ./integration/bench $(BENCHFLAGS) bin

bench-churn: ## a year of nightly backups, forget and compact: bytes copied, dead share, against restic (quarter of an hour, 1 GiB of memory)
bench-churn: TOOLS = git rsync restic
bench-churn: PACKAGES = git rsync restic
bench-churn: deps
	$(GO) run ./integration/benchchurn $(CHURNFLAGS)

# SCALEFLAGS='-files 1000,10000 -history 0' selects trees, and writes no cost curves.
bench-scale: build deps ## 1,000 to a million files: memory, times and sizes, docs/cost.svg (needs root; minutes, 12 GiB of memory)
	$(GO) run ./integration/benchscale $(SCALEFLAGS) bin

# Everybody may read what is installed, whatever the umask is.
install: build ## programs, manual, completions, systemd units below $(DESTDIR)$(PREFIX)
	install -D -m 755 -t '$(DESTDIR)$(PREFIX)/bin' bin/mkbackup bin/backupfs
	umask 022 && bin/mkbackup --write-manual '$(DESTDIR)$(PREFIX)/share' && bin/backupfs --write-manual '$(DESTDIR)$(PREFIX)/share'
	install -D -m 644 -t '$(DESTDIR)$(PREFIX)/share/doc/backupfs' $(DOCS) internal/packaging/example.conf
	install -D -m 644 -t '$(DESTDIR)$(PREFIX)/share/doc/backupfs/docs' docs/*
	install -d '$(DESTDIR)$(PREFIX)/lib/systemd/system'
	umask 022 && for unit in internal/packaging/systemd/*; do \
		sed 's|@BINDIR@|$(PREFIX)/bin|' "$$unit" >'$(DESTDIR)$(PREFIX)/lib/systemd/system/'"$${unit##*/}" || exit 1; \
	done

uninstall: ## what install put there
	rm -f '$(DESTDIR)$(PREFIX)'/bin/mkbackup '$(DESTDIR)$(PREFIX)'/bin/backupfs '$(DESTDIR)$(PREFIX)'/share/man/man1/mkbackup*.1 \
		'$(DESTDIR)$(PREFIX)'/share/man/man1/backupfs.1 '$(DESTDIR)$(PREFIX)'/share/bash-completion/completions/mkbackup \
		'$(DESTDIR)$(PREFIX)'/share/bash-completion/completions/backupfs '$(DESTDIR)$(PREFIX)'/share/zsh/site-functions/_mkbackup \
		'$(DESTDIR)$(PREFIX)'/share/zsh/site-functions/_backupfs '$(DESTDIR)$(PREFIX)'/share/fish/vendor_completions.d/mkbackup.fish \
		'$(DESTDIR)$(PREFIX)'/share/fish/vendor_completions.d/backupfs.fish '$(DESTDIR)$(PREFIX)'/lib/systemd/system/mkbackup@.service \
		'$(DESTDIR)$(PREFIX)'/lib/systemd/system/mkbackup@.timer '$(DESTDIR)$(PREFIX)'/lib/systemd/system/backupfs@.service
	rm -rf '$(DESTDIR)$(PREFIX)/share/doc/backupfs'

deb: ## a Debian package, into bin/ (needs dpkg-deb)
	rm -rf bin/deb bin/*.deb # dpkg -i bin/*.deb installs the one that is last by name
	$(MAKE) install DESTDIR=bin/deb PREFIX=/usr
	gzip -9n bin/deb/usr/share/man/man1/*.1
	mv bin/deb/usr/share/zsh/site-functions bin/deb/usr/share/zsh/vendor-completions # where Debian's zsh looks
	umask 022 && install -D -m 755 -t bin/deb/DEBIAN internal/packaging/debian/postinst internal/packaging/debian/prerm internal/packaging/debian/postrm
	arch=$$(dpkg --print-architecture) && \
		sed "s/@VERSION@/$(DEBVERSION)/; s/@ARCH@/$$arch/" internal/packaging/debian/control >bin/deb/DEBIAN/control && \
		dpkg-deb --root-owner-group --build bin/deb "bin/backupfs_$(DEBVERSION)_$$arch.deb"

clean: ## remove what was built
	rm -rf bin coverage.out

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
