#!/usr/bin/env bash
# Runs a command with a Docker engine: with the one that runs already, or else with one that ends with the command.
set -euo pipefail
if docker info >/dev/null 2>&1; then
  exec "$@"
fi
fail() { echo "docker: $*" >&2; exit 1; }
command -v dockerd >/dev/null || fail "no Docker engine answers and none is installed: run deploy/setup.sh"
[ "$(id -u)" = 0 ] || fail "no Docker engine answers: start it (systemctl start docker), or run this as root"
pgrep -x dockerd >/dev/null && fail "a Docker engine runs, but does not answer at ${DOCKER_HOST:-/var/run/docker.sock}. Set DOCKER_HOST to where it listens, or join the group docker. A second one is not started beside it: it would take the first one's network away"

home="$(mktemp -d /tmp/gpubnb-docker.XXXXXX)"
export DOCKER_HOST="unix://$home/docker.sock"
# Jobs have no network, so the engine makes no bridge and leaves the machine's firewall alone. The networks that Compose
# makes work without both.
dockerd --host "$DOCKER_HOST" --data-root "$home/data" --exec-root "$home/exec" --pidfile "$home/pid" \
  --bridge=none --iptables=false --ip6tables=false >"$home/log" 2>&1 &
engine=$!
stop() {
  status=$?
  kill "$engine" 2>/dev/null || true
  wait "$engine" 2>/dev/null || true
  for mounted in $(awk -v home="$home/" 'index($2, home) == 1 { print $2 }' /proc/mounts | sort -r); do
    umount "$mounted" 2>/dev/null || true
  done
  rm -rf "$home"
  exit "$status"
}
trap stop EXIT
# The command itself answers Ctrl-C; this script only cleans up afterwards.
trap : INT TERM
for _ in $(seq 150); do
  docker info >/dev/null 2>&1 && break
  kill -0 "$engine" 2>/dev/null || { tail -n 20 "$home/log" >&2; fail "the Docker engine did not start (its last lines are above)"; }
  sleep 0.2
done
docker info >/dev/null 2>&1 || { tail -n 20 "$home/log" >&2; fail "the Docker engine does not answer"; }
"$@"
