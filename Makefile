# The commands of GPUbnb. `make demo` shows it; `make test` proves it.
PORT ?= 8080
# All but the demo jobs, which deploy/images.sh builds as one static binary. Without default features, the build needs
# neither the driver of a browser nor the allocator jemalloc, which takes a third of the whole build.
BINARIES = --no-default-features -p gpubnb-services -p gpubnb-operator -p gpubnb-notifier -p gpubnb-provider -p gpubnb-ui -p gpubnb-cli -p gpubnb-tests --bins
JEMALLOC = --features gpubnb-services/jemalloc,gpubnb-operator/jemalloc,gpubnb-tests/jemalloc

.PHONY: help setup setup-tests build images demo smoke test hostile attack bench worker sdk fmt clean

help: ## Lists the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: ## Installs what is missing to run it
	@deploy/setup.sh

setup-tests:
	@deploy/setup.sh --tests

build: setup
	@cargo build --locked --quiet $(BUILD_OPTIONS) $(BINARIES)

images: setup
	@deploy/with-docker.sh deploy/images.sh

# Nobody reads debug information in a demo, and a newcomer would wait half a minute longer for it.
demo smoke: export CARGO_PROFILE_DEV_DEBUG = none
demo smoke: BUILD_OPTIONS = --config deploy/demo.toml
demo: build ## Starts a whole market, runs a training job, stays up until Ctrl-C (PORT=8080)
	@deploy/with-docker.sh sh -c 'deploy/images.sh && exec target/debug/gpubnb-demo --port $(PORT)'

smoke: build ## The same, and ends by itself; the last line is JSON
	@deploy/with-docker.sh sh -c 'deploy/images.sh && exec target/debug/gpubnb-demo --port 0 --smoke'

test: setup-tests ## Everything: format, lints, unit, property, whole system, browser
	@deploy/with-docker.sh deploy/test.sh

hostile: setup-tests ## Just the jobs that try to harm their machine, against real Docker
	@cargo build --locked --quiet --workspace --bins
	@deploy/with-docker.sh sh -c 'deploy/images.sh --tests && exec cargo test --locked -p gpubnb-tests --test machines -- hostile::'

attack: setup-tests ## Just the attacks on a market and its machines (docs/security.md), on networks of its own; as root
	@cargo build --locked --quiet --workspace --bins
	@cargo test --locked --quiet -p gpubnb-dialer -p gpubnb-door -p gpubnb-domain -p gpubnb-provider --lib
	@cargo test --locked --quiet -p gpubnb-tests --test api --test machines --no-run
	@deploy/with-docker.sh sh -c 'deploy/images.sh --tests && exec deploy/attack.sh sh -c "\
	  cargo test --offline --locked -p gpubnb-tests --test api -- access:: attacks:: credentials:: deputy:: edge:: foreign:: input:: liar:: && \
	  exec cargo test --offline --locked -p gpubnb-tests --test machines -- bills:: disks:: door:: hostile:: images::"'

bench: setup ## Measures against the physical limits; writes target/bench/report.json
	@cargo build --locked --quiet --release $(BINARIES) $(JEMALLOC)
	@cargo build --locked --quiet --profile worker -p gpubnb-provider
	@install target/worker/gpubnb-provider target/release/gpubnb-provider
	@deploy/with-docker.sh sh -c 'deploy/images.sh && exec target/release/gpubnb-bench'

worker: setup ## Builds the worker for owners: target/worker/gpubnb-provider
	@cargo build --locked --quiet --profile worker -p gpubnb-provider
	@ls -l target/worker/gpubnb-provider

sdk: setup-tests ## Builds the Python package: target/wheels/gpubnb-*.whl
	@cargo build --locked --quiet --no-default-features -p gpubnb-ui
	@deploy/python-package.sh

fmt: setup ## Formats the code, the templates, the stylesheet and the scripts
	@cargo fmt --all
	@npm run --prefix ui --silent format

clean: ## Removes what was built
	@rm -rf target ui/node_modules
