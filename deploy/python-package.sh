#!/usr/bin/env bash
# Builds the Python package, and installs it where its tests run. Needs what deploy/setup.sh --tests installs, and the
# built web server, which prints the OpenAPI document from which the package's models are made.
# Usage: deploy/python-package.sh [--check]    (--check changes no file of the package, and runs its checks and tests)
set -euo pipefail
cd "$(dirname "$0")/.."
bin="$PWD/target/tools/sdk/bin"
target/debug/gpubnb-ui openapi | "$bin/python" sdk/python/scripts/generate.py "$@"
cd sdk/python
rm -rf ../../target/wheels
"$bin/pip" wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir ../../target/wheels .
"$bin/pip" install --quiet --disable-pip-version-check --no-deps --force-reinstall ../../target/wheels/gpubnb-*.whl
if [ "${1:-}" = --check ]; then
  "$bin/ruff" format --quiet --check .
  "$bin/ruff" check --quiet .
  "$bin/mypy" --no-error-summary
  "$bin/pytest" -q -m "not market" -p no:cacheprovider
else
  ls ../../target/wheels
fi
