#!/usr/bin/env bash
# Every check, in the order in which a failure is cheapest to learn of.
set -euo pipefail
cd "$(dirname "$0")/.."
step() { printf '\n== %s (%ss)\n' "$*" "$SECONDS"; }

step "format"
cargo fmt --all --check
npm run --prefix ui --silent format:check
# In a locale with UTF-8, so that "…" and "·" count as one character each.
if LC_ALL=C.UTF-8 grep -rnE '^.{121,}' ui/templates ui/assets; then
  echo "test: the lines above are longer than 120 characters" >&2
  exit 1
fi
step "dependencies"
cargo fetch --locked --quiet
PATH="$PWD/target/tools/bin:$PATH" cargo-deny --offline check --hide-inclusion-graph licenses bans sources
step "lints"
RUSTFLAGS="${CI:+-D warnings}" cargo clippy --locked --quiet --workspace --all-targets
step "build"
RUSTFLAGS="${CI:+-D warnings}" cargo build --locked --quiet --workspace --bins
RUSTFLAGS="${CI:+-D warnings}" cargo build --locked --quiet -p gpubnb-fake-nvml
deploy/images.sh --tests
step "tests"
RUSTFLAGS="${CI:+-D warnings}" cargo test --locked --workspace --no-fail-fast
step "done"
