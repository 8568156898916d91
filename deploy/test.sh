#!/usr/bin/env bash
# Every check, in the order in which a failure is cheapest to learn of. Needs what deploy/setup.sh --tests installs, and a
# Docker engine (deploy/with-docker.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
step() { printf '\n== %s (%ss)\n' "$*" "$SECONDS"; }
export RUSTFLAGS="${RUSTFLAGS-}${CI:+ -D warnings}"

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
# Clippy's compiler is the usual one with more lints. Where it compiles our crates, one build gives the lints, the
# programs and the tests; `cargo clippy` would check every crate of others once more before that.
step "lints and build"
clippy="$(rustup which clippy-driver 2>/dev/null || command -v clippy-driver)"
RUSTC_WORKSPACE_WRAPPER="$clippy" cargo build --locked --quiet --workspace --all-targets
step "images"
deploy/images.sh --tests
step "tests"
RUSTC_WORKSPACE_WRAPPER="$clippy" cargo test --locked --workspace --no-fail-fast
step "compose"
deploy/compose-test.sh
step "done"
