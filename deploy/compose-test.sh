#!/usr/bin/env bash
# Brings the whole market up with compose.yaml beside whatever else runs here, runs one job on it, starts it a
# second time, and removes exactly what it made.
#
# Base images that are here are used as they are. For each that is missing a stand-in is made, so that the test
# runs without a network: Debian is this machine's shell and libraries, the broker this machine's nats-server,
# Node.js and Rust hand out what was built before. Needs bash, curl, jq, and Docker with Compose; Linux only.
#
#   GPUBNB_BINARIES=DIR      where the four processes are (target/release, else target/debug)
#   GPUBNB_WORKLOAD=FILE     the static workload (made by deploy/images.sh)
#   GPUBNB_NATS_SERVER=FILE  the broker's program (on PATH)
#   GPUBNB_PULL=1            makes no stand-in: what is missing is pulled and everything is compiled
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "compose-test: $*"; }
die() {
  echo "compose-test: $*" >&2
  exit 1
}
need() { command -v "$1" >/dev/null || die "$1 is not installed: $2"; }

need docker "install Docker"
need curl "install curl"
need jq "install jq"
docker version >/dev/null 2>&1 || die "Docker does not answer: start it, and see that you may use it"
if docker compose version >/dev/null 2>&1; then
  compose=(docker compose)
else
  need docker-compose "install Docker Compose 2.20 or later"
  compose=(docker-compose)
fi

run="gpubnb-test-$$-$(date +%s)"
label="gpubnb.compose-test=$run"
dir="$(mktemp -d)"
state="$dir/state"
mkdir "$state"
override="$dir/override.yaml"
bases=()

dc() {
  GPUBNB_PORT=0 GPUBNB_STATE="$state" GPUBNB_NAME="$run" GPUBNB_DOCKER_SOCKET="${GPUBNB_DOCKER_SOCKET:-}" \
    "${compose[@]}" --project-name "$run" --file compose.yaml --file "$override" --progress quiet "$@"
}

clean_up() {
  local code=$? machine
  trap - EXIT
  set +e
  if [ "$code" != 0 ] && [ -s "$override" ]; then
    dc ps --all
    dc logs --no-color --tail 30
  fi
  say "cleaning up"
  # First the worker, or it would start what is removed here once more.
  [ ! -s "$override" ] || dc stop provider
  machine="$(cat "$state/machine" 2>/dev/null)"
  if [ -n "$machine" ]; then
    docker ps --all --quiet --filter "label=gpubnb.machine=$machine" | xargs -r docker rm --force --volumes >/dev/null
  fi
  # What jobs left belongs to nobody: whoever may use Docker may remove it all the same.
  if ! rm -rf "$state" 2>/dev/null; then
    docker run --rm --network none --user 0:0 --volume "$dir:$dir" "$run/market" rm -rf "$state"
  fi
  [ ! -s "$override" ] || dc down --volumes --remove-orphans --timeout 10
  # Stages of a build carry the label of the base that they begin with.
  docker image rm --force "$run/market" "$run/workloads" "${bases[@]}" >/dev/null 2>&1
  [ -z "$lent" ] || docker image rm gpubnb/workloads:1 >/dev/null
  docker image ls --all --quiet --filter "label=$label" | sort -u | xargs -r docker image rm --force >/dev/null 2>&1
  rm -rf "$dir"
  exit "$code"
}
lent=""
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A directory with programs of this machine and the libraries they need.
root_of() {
  local root="$1" program found library
  shift
  mkdir -p "$root"/{etc,proc,sys,dev,usr/bin,usr/local/bin}
  mkdir -m 1777 "$root/tmp"
  ln -s usr/bin "$root/bin"
  for program in "$@"; do
    found="$(command -v "$program")" || die "$program is not installed: a stand-in for Debian needs it"
    cp -L "$found" "$root/usr/bin/$program"
    for library in $(ldd "$found" 2>/dev/null | grep -o '/[^ ]*'); do
      [ -e "$root$library" ] || install -D -m 755 "$library" "$root$library"
    done
  done
}

# Becomes the image of that name.
import() {
  local root="$1" name="$2"
  tar -C "$root" --owner=0 --group=0 --numeric-owner -c . |
    docker import --change "LABEL $label" --change 'ENV PATH=/usr/local/bin:/usr/bin' - "$name" >/dev/null
}

# A base for this run only: what is here under its real name, else the stand-in of that kind.
base() {
  local kind="$1" real="$2" root="$dir/$1"
  bases+=("$run/$kind")
  if docker image inspect "$real" >/dev/null 2>&1 || [ -n "${GPUBNB_PULL:-}" ]; then
    say "$real is used as it is"
    printf 'FROM %s\nLABEL %s\n' "$real" "$label" | docker build --quiet --tag "$run/$kind" - >/dev/null ||
      die "$real cannot be had: see what Docker says above"
    return
  fi
  say "$real is not here: a stand-in takes its place"
  root_of "$root" bash sh cat chmod chown cp grep install ls mkdir mv rm sed sleep
  "stand_in_$kind" "$root"
  import "$root" "$run/$kind"
  rm -rf "$root"
}

stand_in_debian() {
  local library
  # Not asked for by the shell, but by our own processes.
  for library in $(ldd "$binaries/gpubnb-services" | grep -o '/[^ ]*'); do
    [ -e "$1$library" ] || install -D -m 755 "$library" "$1$library"
  done
}

stand_in_node() {
  mkdir "$1/node_modules"
  [ ! -d ui/node_modules ] || cp -rL ui/node_modules/. "$1/node_modules"
  printf '#!/bin/bash\nset -e\ncp -r /node_modules .\n' >"$1/usr/local/bin/npm"
  chmod 755 "$1/usr/local/bin/npm"
}

stand_in_rust() {
  install -D -t "$1/built" "$binaries"/gpubnb-{services,projector,provider,ui} "$workload"
  printf '#!/bin/bash\necho stand-in\n' >"$1/usr/local/bin/rustc"
  cat >"$1/usr/local/bin/cargo" <<'CARGO'
#!/bin/bash
set -e
case "$*" in
  *gpubnb-workloads*) install -D -t target/workloads/stand-in/release /built/gpubnb-workload ;;
  *) install -D -t target/release /built/gpubnb-{services,projector,provider,ui} ;;
esac
CARGO
  chmod 755 "$1/usr/local/bin/rustc" "$1/usr/local/bin/cargo"
}

stand_in_nats() {
  install -m 755 "$nats" "$1/usr/local/bin/nats-server"
  # Only what the health check asks of it: nc -z HOST PORT.
  printf '#!/bin/bash\nexec 3<>"/dev/tcp/$2/$3"\n' >"$1/usr/local/bin/nc"
  chmod 755 "$1/usr/local/bin/nc"
}

find_parts() {
  local host version
  binaries="${GPUBNB_BINARIES:-}"
  if [ -z "$binaries" ]; then
    binaries=target/release
    [ -x "$binaries/gpubnb-services" ] || binaries=target/debug
  fi
  for name in services projector provider ui; do
    [ -x "$binaries/gpubnb-$name" ] ||
      die "$binaries/gpubnb-$name is not there: run \`cargo build --workspace --bins\`, or set GPUBNB_BINARIES"
  done
  workload="${GPUBNB_WORKLOAD:-}"
  if [ -z "$workload" ]; then
    host="$(rustc -vV | sed -n 's/^host: //p')"
    workload="target/workloads/$host/release/gpubnb-workload"
  fi
  [ -x "$workload" ] || die "$workload is not there: run deploy/images.sh, or set GPUBNB_WORKLOAD"
  nats="${GPUBNB_NATS_SERVER:-target/tools/bin/nats-server}"
  [ -x "$nats" ] || nats="$(command -v nats-server)" || die "nats-server is not installed: set GPUBNB_NATS_SERVER"
}
