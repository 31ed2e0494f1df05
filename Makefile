# The commands of everyday work. `make help` lists them.

# Where rustup puts cargo, for shells that do not know it yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

.DEFAULT_GOAL := help
.PHONY: help run build release test restricted simulate fuzz bench check

help: ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Build the gateway quickly, less optimised, and start the demo (ARGS="--port 8081" for other arguments)
	@scripts/dependencies build
	cargo run --profile trial --locked -- demo $(ARGS)

build: ## Build the gateway with every optimisation but a profile: target/release/tollgate
	@scripts/dependencies build
	cargo build --release --locked

release: ## Build the gateway as it is shipped, with a profile: a tenth faster, and it takes three times as long
	@scripts/dependencies release
	scripts/release

test: ## Run every test
	@scripts/dependencies test
	cargo test --locked

restricted: ## Every test again, as a Redis user with the documented permissions alone and a prefix for all keys
	@scripts/dependencies test
	TOLLGATE_TEST_REDIS_ACL=1 TOLLGATE_TEST_REDIS_PREFIX=tests: cargo test --locked

simulate: ## The simulation of the limits at length (RUNS=100000; SEED=n replays one run)
	@scripts/dependencies build
	TOLLGATE_SIMULATION_RUNS=$(or $(RUNS),100000) $(if $(SEED),TOLLGATE_SIMULATION_SEED=$(SEED)) cargo test --locked --test simulation

fuzz: ## The parsers of credentials, records and keys at length (RUNS=3000000; SEED=n replays one run)
	@scripts/dependencies build
	TOLLGATE_FUZZ_RUNS=$(or $(RUNS),3000000) $(if $(SEED),TOLLGATE_FUZZ_SEED=$(SEED)) cargo test --locked --test fuzz

bench: ## Compare the gateway under load with bare Pingora and nginx
	@scripts/dependencies bench
	cargo bench --locked --bench load

check: ## Formatting, lints and documentation, warnings as errors
	@scripts/dependencies build
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items
