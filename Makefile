# Entry points for people and CI. What needs more than a line is in xtask/.
# One cargo profile (dev) serves test, demo and lint, so nothing is built twice.

XTASK := cargo run -q --locked -p xtask --
XTASK_BUILT := $(or $(CARGO_TARGET_DIR),target)/debug/xtask

.DEFAULT_GOAL := help
# The steps share cargo's target folder and wait for each other anyway.
.NOTPARALLEL:
.PHONY: help setup ebpf control-plane build test e2e k8s-conformance conformance fuzz stress kernels demo bench bench-cluster images fmt lint deny clean root

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing to build and test (seconds when nothing is)
	@test -x "$(XTASK_BUILT)" || echo "building xtask (about half a minute) …" >&2
	@$(XTASK) setup

ebpf: setup ## Build the eBPF programs to target/bpf/
	@$(XTASK) ebpf

control-plane: setup ## Build a Kubernetes control plane and Kubernetes' tests (7 minutes, once per machine)
	@$(XTASK) control-plane

build: ebpf ## Build everything
	cargo build --workspace --locked

test: root setup ## Build and run all tests, and say how long each part took (root)
	@$(XTASK) test

# FUZZ="config --seconds 3600" fuzzes one target for an hour.
fuzz: setup ## Fuzz all that is decoded from outside, 5 minutes each
	@$(XTASK) fuzz $(FUZZ)

stress: root ebpf control-plane ## Look for rare mistakes: 10^8 reads, 10^5 worlds, 1,000 kills, 1,000 nodes, 20,000 strangers (root, an hour)
	SLOTMESH_MODEL_WORLDS=100000 cargo test -p slotmesh-compile --locked --test compile -- model::
	SLOTMESH_FLOOD=10000 cargo test -p slotmesh-operator --locked --test flood -- --nocapture
	SLOTMESH_ALL_FAULTS=1 cargo test -p slotmesh-agent --locked --test faults -- --nocapture
	SLOTMESH_TORN_READS=100000000 SLOTMESH_TORN_RUNS=10 \
	  cargo test -p slotmesh-agent --locked --test torn_reads -- --nocapture
	SLOTMESH_SEQUENCES=20 cargo test -p slotmesh-agent --locked --test kernel -- sequences::
	cargo build -p slotmesh -p slotmesh-e2e --locked
	SLOTMESH_STATUS_OBJECTS=5000 SLOTMESH_STATUS_NODES=1000 \
	  cargo test -p slotmesh-operator --locked --test cluster -- --nocapture writes:: fleet::
	SLOTMESH_KILLS=1000 cargo test -p slotmesh-e2e --locked --test be_killed_at_any_instant -- --nocapture

e2e: root ebpf control-plane ## Run the end-to-end scenarios, on one agent and on a cluster (part of `test`; root)
	@$(XTASK) gateway-conformance
	cargo build -p slotmesh -p slotmesh-next -p slotmesh-cluster -p slotmesh-e2e --locked
	cargo test -p slotmesh-cluster -p slotmesh-e2e --locked

# First without slotmesh: what fails there is the fault of the cluster that they run on.
k8s-conformance: root ebpf control-plane ## Run Kubernetes' own tests of Services from pods of the mesh, and without it (root)
	cargo build -p slotmesh -p slotmesh-cluster -p slotmesh-e2e --locked
	SLOTMESH_KUBERNETES_TESTS=without cargo test -p slotmesh-e2e --locked --test pass_kubernetes_tests
	SLOTMESH_KUBERNETES_TESTS=all cargo test -p slotmesh-e2e --locked --test pass_kubernetes_tests

conformance: root ebpf control-plane ## Run Gateway API's conformance tests of a mesh, and write their report anew (root)
	@$(XTASK) gateway-conformance
	cargo build -p slotmesh -p slotmesh-cluster -p slotmesh-e2e --locked
	SLOTMESH_CONFORMANCE_REPORT=$(CURDIR)/docs/conformance/gateway-api.yaml \
	  cargo test -p slotmesh-e2e --locked --test pass_gateway_api_tests

kernels: ebpf ## Run the tests that need the kernel on Linux 6.1 and 6.12, in QEMU
	@$(XTASK) kernels

demo: root ebpf ## Show live traffic shifting on an example shop (root)
	cargo build -p slotmesh -p slotmesh-e2e --locked
	@$(or $(CARGO_TARGET_DIR),target)/debug/demo

bench: root ebpf ## Run the benchmarks (root)
	@$(XTASK) envoy || echo "the proxy is measured without an Envoy" >&2
	@$(XTASK) nginx || echo "the proxy is measured without an nginx" >&2
	cargo bench -p slotmesh-bench --bench all --bench proxy --locked

# The same packages in both: so all is compiled once, with the same features.
CLUSTER_BENCH := -p slotmesh -p slotmesh-e2e -p slotmesh-bench

bench-cluster: root ebpf control-plane ## Run the benchmarks on a real API server (root)
	cargo build --release $(CLUSTER_BENCH) --bench cluster --bin slotmesh --bin client --locked
	cargo bench $(CLUSTER_BENCH) --bench cluster --locked

images: ebpf ## Build the container images of operator and agent to target/images (buildah)
	@$(XTASK) images

fmt: ## Format the workspace and the eBPF programs
	cargo fmt --all
	cargo fmt --all --manifest-path bpf-programs/programs/Cargo.toml

lint: ## Check format, dependency direction and words, run clippy
	cargo fmt --all --check
	cargo fmt --all --manifest-path bpf-programs/programs/Cargo.toml --check
	@$(XTASK) layers
	@$(XTASK) words
	cargo clippy --workspace --all-targets --locked -- -D warnings

deny: ## Check licenses, bans and sources of all dependencies
	@$(XTASK) deny

clean: ## Remove everything built here (tools in the cache folder stay)
	cargo clean
	rm -rf target/bpf target/control-plane target/envoy target/fuzz target/kernels target/loom target/nginx bpf-programs/programs/target

# Not a target for people: the tests, the demo and the benchmarks load eBPF programs.
root:
	@test "$$(id -u)" = 0 || { \
	  echo "error: this loads eBPF programs and creates cgroups and network namespaces, so it needs root." >&2; \
	  echo "  Run it as root (for instance \`sudo -E env PATH=\"\$$PATH\" make ...\`); \`make build\` and \`make lint\` don't need it." >&2; \
	  exit 1; }
