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
# The allocator jemalloc takes minutes to build and changes no answer, so it is left to `make bench` and to releases.
features="--no-default-features --features gpubnb-tests/browser,gpubnb-tests/contract"
clippy="$(rustup which clippy-driver 2>/dev/null || command -v clippy-driver)"
RUSTC_WORKSPACE_WRAPPER="$clippy" cargo build --locked --quiet --workspace $features --all-targets
step "Python package"
deploy/python-package.sh --check
step "images"
deploy/images.sh --tests

# Every test binary, as "name<TAB>package directory<TAB>program".
tests="$(RUSTC_WORKSPACE_WRAPPER="$clippy" cargo test --locked --quiet --workspace $features --all-targets --no-run --message-format=json |
  jq -r 'select(.reason == "compiler-artifact" and .profile.test and .executable != null)
    | [.target.name, (.manifest_path | rtrimstr("/Cargo.toml")), .executable] | @tsv')"
[ -n "$tests" ] || { echo "test: no test was built" >&2; exit 1; }
# The tests of machines run on networks of their own, where that is possible: nothing of a hostile job or image may reach
# the network of this machine, and the run fails if anything tries.
if deploy/attack.sh true >/dev/null 2>&1; then
  tests="$(awk -F '\t' -v OFS='\t' -v wall="$PWD/deploy/attack.sh" \
    '$1 == "machines" { $3 = wall " " $3 } { print }' <<<"$tests")"
fi
# The binaries that start whole markets, the longest first; the others need no more than a second or two each.
markets="operators browser machines api"
logs="$PWD/target/test-logs"
rm -rf "$logs"
mkdir -p "$logs"

# one NAME DIRECTORY COMMAND...: runs a command in a directory; its output is shown when it has ended.
one() {
  local name="$1" directory="$2" began="$SECONDS" status=0
  shift 2
  (cd "$directory" && "$@") >"$logs/$name.log" 2>&1 || status=$?
  printf '\n-- %s: %s after %ss\n' "$name" "$([ "$status" = 0 ] && echo ok || echo FAILED)" "$((SECONDS - began))"
  cat "$logs/$name.log"
  return "$status"
}
export -f one
export logs

step "unit tests and house rules"
failed=
while IFS=$'\t' read -r name directory program; do
  [[ " $markets " == *" $name "* ]] || one "$name" "$directory" "$program" </dev/null || failed=1
done <<<"$tests"

# Two at a time, because a market waits more than it computes. How many markets there are at once, the tests themselves
# bound (tests/src/market_slots.rs).
step "whole system"
{
  for name in $markets; do awk -F '\t' -v name="$name" '$1 == name' <<<"$tests"; done
  printf 'compose\t%s\tdeploy/compose-test.sh\n' "$PWD"
} | xargs -P 2 -L 1 bash -c 'one "$@"' one || failed=1
[ -z "$failed" ] || { echo "test: something failed; see above, and $logs" >&2; exit 1; }
step "done"
