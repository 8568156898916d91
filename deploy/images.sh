#!/usr/bin/env bash
# Builds the approved demo jobs as one static binary and imports it as a Docker image with nothing else in it.
# Offline, and quick when nothing changed.
set -euo pipefail
cd "$(dirname "$0")/.."
target="$(rustc -vV | sed -n 's/^host: //p')"
echo "images: building the workloads (static, $target)"
RUSTFLAGS="-C target-feature=+crt-static" \
  cargo build --locked --quiet --release -p gpubnb-workloads --target "$target" --target-dir target/workloads
stage="$(mktemp -d)"
trap 'rm -rf "$stage"' EXIT
install -m 755 "target/workloads/$target/release/gpubnb-workload" "$stage/gpubnb-workload"
mkdir "$stage/output" "$stage/tmp"
docker="${GPUBNB_DOCKER:-docker}"
stamp="$(sha256sum "$stage/gpubnb-workload" | cut -c1-16)"
have="$("$docker" image inspect -f '{{index .Config.Labels "gpubnb.workload"}}' gpubnb/workloads:1 2>/dev/null || true)"
if [ "$have" != "$stamp" ]; then
  tar -C "$stage" --sort=name --mtime=@0 --owner=0 --group=0 -c . |
    "$docker" import --change 'ENTRYPOINT ["/gpubnb-workload"]' --change "LABEL gpubnb.workload=$stamp" \
      --change 'ENV RAYON_NUM_THREADS=1' - gpubnb/workloads:1 >/dev/null
  echo "images: gpubnb/workloads:1 imported"
fi
