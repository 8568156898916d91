#!/usr/bin/env bash
# Builds the approved demo jobs as one static binary, and imports that binary as a Docker image with nothing else in it.
# With --tests the hostile jobs and Python get an image as well. Needs no network, and is quick when nothing has changed.
set -euo pipefail
cd "$(dirname "$0")/.."
target="$(rustc -vV | sed -n 's/^host: //p')"
echo "images: building the workloads (static, $target)"
RUSTFLAGS="-C target-feature=+crt-static" \
  cargo build --locked --quiet --profile workloads -p gpubnb-workloads --target "$target" --target-dir target/workloads
docker="${GPUBNB_DOCKER:-docker}"
stage="$(mktemp -d)"
trap 'rm -rf "$stage"' EXIT

# is_current IMAGE LABEL STAMP: true if Docker has the image, made from the same.
is_current() {
  [ "$("$docker" image inspect -f "{{index .Config.Labels \"$2\"}}" "$1" 2>/dev/null || true)" = "$3" ]
}
# import BINARY IMAGE: one static binary as an image, unless Docker has that image already.
import() {
  local binary="$1" image="$2" root="$stage/$1"
  mkdir -p "$root/output" "$root/tmp"
  install -m 755 "target/workloads/$target/workloads/$binary" "$root/$binary"
  local stamp
  stamp="$(sha256sum "$root/$binary" | cut -c1-16)"
  ! is_current "$image" gpubnb.workload "$stamp" || return 0
  tar -C "$root" --sort=name --mtime=@0 --owner=0 --group=0 -c . |
    "$docker" import --change "ENTRYPOINT [\"/$binary\"]" --change "LABEL gpubnb.workload=$stamp" - "$image" >/dev/null
  echo "images: $image imported"
}
import gpubnb-workload gpubnb/workloads:1
if [ "${1:-}" = --tests ]; then
  RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --locked --quiet --profile workloads -p gpubnb-hostile --target "$target" --target-dir target/workloads
  import gpubnb-hostile gpubnb/hostile:1
  # python_image IMAGE PYTHON CHANGE ARGUMENTS...: an image that deploy/python-image.py writes, unless Docker has it.
  python_image() {
    local image="$1" python="$2" change="$3" stamp
    shift 3
    stamp="$(cat deploy/python-image.py "$(dirname "$python")/../installed" | sha256sum | cut -c1-16)"
    ! is_current "$image" gpubnb.python "$stamp" || return 0
    "$python" deploy/python-image.py "$@" |
      "$docker" import --change "LABEL gpubnb.python=$stamp" --change "$change" - "$image" >/dev/null
    echo "images: $image imported"
  }
  # The Python of the tests of the Python package, so that functions find their own version there.
  sdk="$PWD/target/tools/sdk/bin/python" gallery="$PWD/target/tools/gallery/bin/python"
  version="$("$sdk" -c 'import sys; print(*sys.version_info[:2], sep=".")')"
  python_image "gpubnb/python:$version" "$sdk" "ENV PYTHONUNBUFFERED=1"
  # The image of the templates whose jobs the tests run, with the packages that those jobs would install.
  python_image gpubnb/gallery:1 "$gallery" "ENV PYTHONPATH=/usr/local/lib/packages" --packages
fi
