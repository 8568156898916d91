#!/usr/bin/env bash
# Starts the whole market with compose.yaml, beside whatever else runs on this machine. Runs one job on the market, starts
# the market a second time, and removes exactly what the test made.
#
# The test uses the base images that Docker has, and makes a stand-in for each that is missing, so that it runs without a
# network: the stand-in for Debian has this machine's shell and libraries, the one for the broker this machine's
# nats-server, and those for Node.js and Rust hand out the parts that were built before. The test needs bash, curl, jq,
# Python 3, and Docker with Compose, on Linux.
#
#   GPUBNB_BINARIES=DIR      directory of our programs (the newer of target/debug and target/release)
#   GPUBNB_WORKLOAD=FILE     the static demo jobs (made by deploy/images.sh)
#   GPUBNB_NATS_SERVER=FILE  the broker's program (on PATH)
#   GPUBNB_PULL=1            no stand-ins: missing images are pulled, and everything is compiled
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "compose-test: $*"; }
fail() { echo "compose-test: $*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

[ "$(uname -s)" = Linux ] || fail "the stand-ins are made of a Linux machine's own programs: run it on one"
for program in docker curl jq python3 tar; do have "$program" || fail "$program is not installed: install it"; done
docker info >/dev/null 2>&1 || fail "Docker does not answer: start it, and see that you may use it"
if docker compose version >/dev/null 2>&1; then
  compose=(docker compose)
elif [ -x target/tools/bin/docker-compose ]; then
  compose=("$PWD/target/tools/bin/docker-compose")
else
  have docker-compose || fail "Docker Compose is not installed: run deploy/setup.sh --tests"
  compose=(docker-compose)
fi
case "${DOCKER_HOST:-unix:///var/run/docker.sock}" in
  unix://*) socket="${DOCKER_HOST:-unix:///var/run/docker.sock}" && socket="${socket#unix://}" ;;
  *) fail "DOCKER_HOST is on another machine: the worker needs a Docker of its own machine" ;;
esac

run="gpubnb-test-$$-$(date +%s)"
label="gpubnb.compose-test=$run"
dir="$(mktemp -d)"
state="$dir/state"
override="$dir/override.yaml"
bases=()
lent=
registry=
registry_pid=

# quietly COMMAND: its output goes to the log, which is shown if the test fails.
quietly() { "$@" >>"$dir/log" 2>&1; }

# Compose, with names, a directory and a port of this run. Compose takes one step at a time: without BuildKit, builds side
# by side would do the same work twice.
dc() {
  COMPOSE_PARALLEL_LIMIT=1 \
    GPUBNB_PORT=0 GPUBNB_PRICE=0 GPUBNB_STATE="$state" GPUBNB_NAME="$run" GPUBNB_DOCKER_SOCKET="$socket" \
    "${compose[@]}" --progress plain --project-name "$run" --file compose.yaml --file "$override" "$@"
}

clean_up() {
  local status=$? machine left
  trap - EXIT
  trap : INT TERM
  set +e
  # A signal may come while the output is redirected.
  exec >&3 2>&4
  [ "$status" = 0 ] || [ ! -s "$dir/log" ] || tail -n 40 "$dir/log"
  if [ -s "$override" ]; then
    if [ "$status" != 0 ]; then
      dc ps --all
      dc logs --no-color --tail 40
    fi
    say "removing everything that the test made"
    # The worker ends first: it would go on with the jobs that are removed here.
    dc stop provider >/dev/null 2>&1
    machine="$(cat "$state/machine" 2>/dev/null)"
    if [ -n "$machine" ]; then
      docker ps --all --quiet --filter "label=gpubnb.machine=$machine" | xargs -r docker rm --force --volumes >/dev/null
    fi
    # The worker's files belong to root, and those of jobs to nobody.
    rm -rf "$state" 2>/dev/null ||
      docker run --rm --network none --user 0:0 --volume "$dir:$dir" "$run/market" rm -rf "$state"
    dc down --volumes --remove-orphans >/dev/null 2>&1
  fi
  [ -z "$registry_pid" ] || kill "$registry_pid"
  [ -z "$registry" ] || docker image rm "$registry/small:1" >/dev/null 2>&1
  if [ -n "$lent" ] && [ "$(docker image inspect -f '{{.Id}}' gpubnb/workloads:1 2>/dev/null)" = "$lent" ]; then
    docker image rm gpubnb/workloads:1 >/dev/null
  fi
  docker image rm --force "$run/market" "$run/workloads" >/dev/null 2>&1
  [ "${#bases[@]}" = 0 ] || docker image rm --force "${bases[@]}" >/dev/null 2>&1
  # Builders without BuildKit leave the stages behind; these carry the label of their base.
  docker image prune --force --filter "label=$label" >/dev/null 2>&1
  rm -rf "$dir"
  left="$(
    docker ps --all --quiet --filter "label=com.docker.compose.project=$run"
    docker volume ls --quiet --filter "label=com.docker.compose.project=$run"
    docker network ls --quiet --filter "label=com.docker.compose.project=$run"
    docker image ls --all --quiet --filter "label=$label"
    docker image ls --all --quiet --filter "reference=$run/*"
    [ ! -e "$dir" ] || echo "$dir"
  )"
  if [ -n "$left" ]; then
    echo "compose-test: not everything could be removed; remove it yourself: ${left//$'\n'/ }" >&2
    status=1
  fi
  [ "$status" = 0 ] || say "failed: the reason stands above"
  exit "$status"
}
exec 3>&1 4>&2
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir "$state"

# --- the parts that were built before, for stand-ins ------------------------------------------------------
names=(gpubnb-services gpubnb-projector gpubnb-notifier gpubnb-provider gpubnb-ui gpubnb)
binaries="${GPUBNB_BINARIES:-}"

missing_in() {
  local name
  for name in "${names[@]}"; do
    [ -x "$1/$name" ] || { echo "$1/$name" && return; }
  done
}

if [ -z "$binaries" ]; then
  binaries=target/debug
  if [ -z "$(missing_in target/release)" ] && [ target/release/gpubnb-services -nt "$binaries/gpubnb-services" ]; then
    binaries=target/release
  fi
fi

need_binaries() {
  local missing
  missing="$(missing_in "$binaries")"
  [ -z "$missing" ] || fail "$missing is not there: run \`make build\`, or set GPUBNB_BINARIES"
}

the_workload() {
  local found="${GPUBNB_WORKLOAD:-}"
  [ -n "$found" ] || found="target/workloads/$(rustc --print host-tuple)/workloads/gpubnb-workload"
  [ -x "$found" ] || fail "$found is not there: run deploy/images.sh, or set GPUBNB_WORKLOAD"
  echo "$found"
}

# The path of the broker's program, also where PATH leads to a script that starts the program.
the_broker() {
  local found pid
  found="${GPUBNB_NATS_SERVER:-target/tools/bin/nats-server}"
  if [ ! -x "$found" ]; then
    [ -z "${GPUBNB_NATS_SERVER:-}" ] || fail "GPUBNB_NATS_SERVER is no program: $found"
    found="$(command -v nats-server)" || fail "nats-server is not installed: run deploy/setup.sh"
  fi
  if [ "$(head -c 4 "$found" | tail -c 3)" != ELF ]; then
    "$found" --addr 127.0.0.1 --port -1 >/dev/null 2>&1 &
    pid=$!
    for _ in $(seq 100); do
      found="$(readlink "/proc/$pid/exe")" || break
      [ "${found##*/}" != nats-server ] || break
      sleep 0.05
    done
    kill "$pid" 2>/dev/null || true
    [ "${found##*/}" = nats-server ] || fail "nats-server on PATH does not start: set GPUBNB_NATS_SERVER"
  fi
  echo "$found"
}

# --- base images --------------------------------------------------------------------------------------------
# Copies the libraries of a program into a root.
libraries() {
  local library
  for library in $(ldd "$2" | grep -o '/[^ ]*'); do
    [ -e "$1$library" ] || install -D -m 755 "$library" "$1$library"
  done
}

# A root with this machine's shell, a few of its tools, and their libraries.
small_root() {
  local program found
  mkdir -p "$1"/usr/bin "$1"/usr/local/bin
  mkdir -m 1777 "$1/tmp"
  ln -s usr/bin "$1/bin"
  for program in bash cat chmod chown cp grep install ls mkdir mv rm sed sleep; do
    found="$(type -P "$program")" || fail "$program is not installed: a stand-in needs it"
    install -m 755 "$found" "$1/usr/bin/$program"
    libraries "$1" "$found"
  done
  ln -s bash "$1/usr/bin/sh"
}

script() {
  cat >"$1"
  chmod 755 "$1"
}

fill_debian() {
  local name
  need_binaries
  for name in "${names[@]}"; do libraries "$1" "$binaries/$name"; done
}

fill_node() {
  [ -d ui/node_modules ] || fail "ui/node_modules is not there: run \`npm ci --prefix ui\`"
  cp -RL ui/node_modules "$1/node_modules"
  script "$1/usr/local/bin/npm" <<'NPM'
#!/bin/bash
exec cp -R /node_modules .
NPM
}

fill_rust() {
  local workload
  need_binaries
  workload="$(the_workload)"
  mkdir -p "$1/built" "$1/etc/ssl/certs"
  cp -L /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/" || fail "the package ca-certificates is not installed"
  cp "${names[@]/#/$binaries/}" "$workload" "$1/built"
  script "$1/usr/local/bin/rustc" <<'RUSTC'
#!/bin/bash
echo stand-in
RUSTC
  script "$1/usr/local/bin/cargo" <<'CARGO'
#!/bin/bash
case "$*" in
  *gpubnb-workloads*) exec install -D -t target/workloads/stand-in/workloads /built/gpubnb-workload ;;
  *) exec install -D -t target/release /built/gpubnb /built/gpubnb-{services,projector,notifier,provider,ui} ;;
esac
CARGO
}

fill_nats() {
  local broker
  broker="$(the_broker)"
  install -m 755 "$broker" "$1/usr/local/bin/nats-server"
  # No more than the health check asks: nc -z HOST PORT.
  script "$1/usr/local/bin/nc" <<'NC'
#!/bin/bash
exec 3<>"/dev/tcp/$2/$3"
NC
  # And what the supervisor asks: wget -q -T SECONDS -O FILE URL.
  script "$1/usr/local/bin/wget" <<'WGET'
#!/bin/bash
address="${6#http://}"
exec 3<>"/dev/tcp/${address%%:*}/$(sed 's/[^:]*:\([0-9]*\).*/\1/' <<<"$address")"
printf 'GET /%s HTTP/1.0\r\n\r\n' "${address#*/}" >&3
read -r line <&3
[[ "$line" == *" 200 "* ]]
WGET
}

# A base under this run's name: the image that is here, or else a stand-in.
base() {
  local kind="$1" real="$2" root="$dir/$1"
  if [ -z "${GPUBNB_PULL:-}" ] && ! docker image inspect "$real" >/dev/null 2>&1; then
    say "$real is not here: a stand-in takes its place"
    small_root "$root"
    "fill_$kind" "$root"
    bases+=("$run/$kind")
    tar -C "$root" --owner=0 --group=0 -c . | docker import --change "LABEL $label" \
      --change "ENV PATH=/usr/local/bin:/usr/bin" - "$run/$kind" >/dev/null
    rm -rf "$root"
  else
    say "$real is used"
    bases+=("$run/$kind")
    printf 'FROM %s\nLABEL %s\n' "$real" "$label" | quietly docker build --quiet --tag "$run/$kind" - ||
      fail "$real cannot be had: see what Docker says below"
  fi
}

for kind in debian node rust; do
  base "$kind" "$(sed -n "s/^ARG ${kind^^}_IMAGE=//p" deploy/Dockerfile)"
done
base nats "$(sed -n 's/^ *image: \(nats:.*\)/\1/p' compose.yaml)"

# --- the market ---------------------------------------------------------------------------------------------
cat >"$override" <<YAML
x-build: &build
  args: { DEBIAN_IMAGE: $run/debian, NODE_IMAGE: $run/node, RUST_IMAGE: $run/rust }
services:
  bootstrap: { image: $run/market, build: *build }
  nats: { image: $run/nats, pull_policy: never }
  services: { image: $run/market }
  projector: { image: $run/market }
  notifier: { image: $run/market }
  ui: { image: $run/market }
  first: { image: $run/market }
  provider: { image: $run/market }
  images: { image: $run/workloads, build: *build }
YAML

start() {
  local from=$SECONDS
  quietly dc up --detach --wait --wait-timeout 180 || fail "the market did not start: see below what it says"
  url="http://$(dc port ui 8080)/api/v1"
  say "the market is up at ${url%/api/v1} after $((SECONDS - from)) s"
}

# sees SERVICE EXPECTED: the user and the keys that the service finds, as compose.yaml should give them.
sees() {
  local found
  # The shell in the container expands this.
  # shellcheck disable=SC2016
  found="$(dc exec -T "$1" bash -c 'echo $UID /keys/*')"
  [ "$found" = "$2" ] || fail "$1 runs with '$found' and not with '$2'"
}

say "building"
quietly dc build || fail "the images cannot be built: see why below"
start
if ! docker image inspect gpubnb/workloads:1 >/dev/null 2>&1; then
  docker tag "$run/workloads" gpubnb/workloads:1
  lent="$(docker image inspect -f '{{.Id}}' gpubnb/workloads:1)"
fi
sees nats "10001 /keys/nats.conf"
sees services "10001 /keys/append.creds /keys/bootstrap.creds /keys/issuer.seed /keys/machines.jwt /keys/output.creds /keys/revoker.seed /keys/sealing.seed /keys/serve.creds /keys/system.creds /keys/transfer.key"
sees projector "10001 /keys/operator.creds /keys/projector.creds"
sees notifier "10001 /keys/notifier.creds"
sees ui "10001 /keys/transfer.key /keys/ui.creds"
say "each process has its own keys and no other"

say "a person signs up"
who='{"email":"person@gpubnb.example","password":"a long enough one"}'
curl -sS --fail-with-body --max-time 10 -H 'content-type: application/json' -d "$who" "$url/accounts" >/dev/null ||
  fail "nobody can sign up"
token="$(jq -c '. + {label: "test", scopes: ["jobs:read", "jobs:write"]}' <<<"$who" |
  curl -sS --fail-with-body --max-time 10 -H 'content-type: application/json' -d @- "$url/login" | jq -er .token)" ||
  fail "nobody can log in"
# The token, where other programs on this machine do not see it.
ask() { curl -sS --max-time 10 --config <(echo "header = \"Authorization: Bearer $token\"") "$@"; }

# Waits until the job is settled, and prints it.
settled() {
  local answer=
  for _ in $(seq 300); do
    answer="$(ask "$url/jobs/$1" || true)"
    if [ "$(jq -r .settled <<<"$answer" 2>/dev/null)" = true ]; then
      echo "$answer"
      return
    fi
    sleep 0.2
  done
  fail "the job was not settled within a minute: $answer"
}

say "a job"
submitted="$(ask --fail-with-body -H 'content-type: application/json' \
  -d '{"template":"render","parameters":{"width":"160","height":"90","samples":"4"}}' "$url/jobs")" ||
  fail "the job was not taken: $submitted"
job="$(jq -er .job <<<"$submitted")" || fail "an answer without a job: $submitted"
ended="$(settled "$job")"
[ "$(jq -r .state <<<"$ended")" = Completed ] || fail "the job did not complete: $ended"
ask --fail -o "$dir/render.png" "$url/jobs/$job/artifacts/render.png" ||
  fail "the job left no picture"
[ "$(head -c 4 "$dir/render.png" | tail -c 3)" = PNG ] || fail "what the job left is no picture"
say "job $job is settled; its picture has $(stat -c %s "$dir/render.png") bytes"

say "an image from a registry"
# serve_image NAME: serves the demo jobs' image as files, at an address that the worker's network reaches. Prints the
# address of the registry.
serve_image() {
  local served="$dir/registry/v2/$1" saved="$dir/saved" gateway digest file layers=()
  mkdir -p "$served/manifests" "$served/blobs" "$saved"
  docker save gpubnb/workloads:1 | tar -x -C "$saved"
  # add FILE: adds a part of the image, and prints its descriptor.
  add() {
    digest="sha256:$(sha256sum <"$1" | cut -d ' ' -f 1)"
    cp "$1" "$served/blobs/$digest"
    jq -nc --arg digest "$digest" --argjson size "$(stat -c %s "$1")" '{$digest, $size}'
  }
  for file in $(jq -r '.[0].Layers[]' "$saved/manifest.json"); do layers+=("$(add "$saved/$file")"); done
  jq -nc --argjson config "$(add "$saved/$(jq -r '.[0].Config' "$saved/manifest.json")")" \
    '{schemaVersion: 2, $config, layers: [inputs]}' <<<"${layers[*]}" >"$served/manifests/1"
  gateway="$(docker network inspect -f '{{(index .IPAM.Config 0).Gateway}}' "${run}_registries")"
  python3 -u -m http.server --directory "$dir/registry" --bind "$gateway" 0 >"$dir/registry.log" 2>&1 &
  registry_pid=$!
  for _ in $(seq 50); do
    grep -q 'port [0-9]' "$dir/registry.log" && break
    sleep 0.1
  done
  registry="$gateway:$(sed -n 's/.* port \([0-9]*\) .*/\1/p' "$dir/registry.log")"
}
serve_image small
# The market takes this image without a digest, and the worker may use this one private registry.
export GPUBNB_APPROVE_IMAGES="$registry/small:1"
export GPUBNB_PRIVATE_REGISTRIES="http://$registry"
start
submitted="$(ask --fail-with-body -H 'content-type: application/json' \
  -d "{\"image\":\"$registry/small:1\",\"command\":[\"noop\"]}" "$url/jobs")" ||
  fail "the job was not taken: $submitted"
ended="$(settled "$(jq -er .job <<<"$submitted")")"
[ "$(jq -r .state <<<"$ended")" = Completed ] || fail "the worker did not fetch the image: $ended"
kill "$registry_pid"
registry_pid=
docker image rm "$registry/small:1" >/dev/null

say "down and up again"
quietly dc down || fail "the market did not stop"
start
ended="$(settled "$job")"
[ "$(jq -r .state <<<"$ended")" = Completed ] || fail "the job was forgotten: $ended"
ask --fail "$url/jobs/$job/artifacts/render.png" | cmp - "$dir/render.png" ||
  fail "the picture was lost"
say "the market kept the job and its picture"
say "ok after $SECONDS s"
