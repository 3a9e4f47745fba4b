# Each target brings what it needs: on a Debian or Ubuntu machine `make run` is enough.
#
#   make run     boot the guest and show what the agent does
#   make test    unit tests, and black-box tests on this host and in a VM
#   make lint    formatting, clippy, documentation, licences and advisories
#   make bench   what the agent costs, beside crun and runc, against the promises
#   make image   the guest's kernel, initrd and a container's root file system

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
CACHE      := $(abspath .cache)
IMAGE      := $(TARGET_DIR)/image
AGENT      := $(TARGET_DIR)/x86_64-unknown-linux-gnu/release/nakai
CTL        := $(TARGET_DIR)/tools/nakai-ctl
ROOTFS     := $(TARGET_DIR)/tools/nakai-rootfs --cache $(CACHE)
SUDO       := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# A registry's hiccup fails nothing.
export CARGO_NET_RETRY ?= 10

# The vhost-user vsock device that scripts/install-deps builds, and cargo where that has just installed it.
export PATH := $(CACHE)/tools/bin:$(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

.PHONY: build deps agent ctl rootfs image systemd run debian test bench soak lint clean

build: agent ctl rootfs

deps:
	scripts/install-deps

agent:
	cargo build-agent --locked

ctl rootfs:
	cargo build --locked --profile tools --package nakai-$@

image: agent rootfs
	$(ROOTFS) kernel --output $(IMAGE)/vmlinuz
	$(ROOTFS) initrd --agent $(AGENT) --output $(IMAGE)/initrd
	$(ROOTFS) busybox --output $(IMAGE)/busybox

# systemd and its libraries, unpacked for a container in a test.
systemd: rootfs
	$(ROOTFS) systemd

# Sharing a root file system with the guest takes root, too.
# Building a Debian root makes device nodes and enters it: only root can.
debian: rootfs
	$(SUDO) $(ROOTFS) debian --output $(IMAGE)/debian

run: deps
	$(MAKE) build image debian
	$(SUDO) env "PATH=$$PATH" $(CTL) demo --kernel $(IMAGE)/vmlinuz --initrd $(IMAGE)/initrd \
		--busybox $(IMAGE)/busybox --debian $(IMAGE)/debian

test: deps
	$(MAKE) image systemd
	NAKAI_AGENT=$(AGENT) NAKAI_KERNEL=$(IMAGE)/vmlinuz NAKAI_INITRD=$(IMAGE)/initrd \
		NAKAI_BUSYBOX_ROOT=$(IMAGE)/busybox cargo test --locked --workspace
	cargo test --locked --package nakai --lib --features policy -- policy:: gate::
	NAKAI_BUSYBOX_ROOT=$(IMAGE)/busybox cargo test --locked --package nakai --test blackbox --features policy -- \
		host::policy

# Minutes of it: thousands of execs, container lives, calls cut off and servers killed; nothing may be left of them.
soak: deps
	$(MAKE) image
	NAKAI_SOAK=100 NAKAI_CUTS=1000 NAKAI_KILLS=200 NAKAI_AGENT=$(AGENT) NAKAI_KERNEL=$(IMAGE)/vmlinuz \
		NAKAI_INITRD=$(IMAGE)/initrd NAKAI_BUSYBOX_ROOT=$(IMAGE)/busybox cargo test --locked --test blackbox -- fire::

# WHERE=vm measures in the guest; PEER is another agent of the protocol: a program, or for WHERE=vm an initrd.
bench:
	scripts/install-deps bench
	$(MAKE) image
	NAKAI_AGENT=$(AGENT) NAKAI_KERNEL=$(IMAGE)/vmlinuz NAKAI_INITRD=$(IMAGE)/initrd \
		NAKAI_BUSYBOX_ROOT=$(IMAGE)/busybox OUT=$(TARGET_DIR)/bench cargo bench --locked --bench agent

lint:
	cargo fmt --all --check
	cargo fetch --locked --target x86_64-unknown-linux-gnu
	cargo xtask deny
	cargo xtask lines
	cargo clippy --locked --workspace --all-targets --features nakai-fuzz/targets -- -D warnings
	cargo clippy --locked --package nakai --lib --test blackbox --features policy -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items

clean:
	cargo clean
