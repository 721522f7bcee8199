#!/usr/bin/env bash
# Builds the package and the C++ tests of the working tree and runs all tests: Python, C++, and the checks of the source.
# Arguments go to pytest: bash tools/test.sh -k tokenizer
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ! -x .venv/bin/python ]]; then
  echo "test: .venv is missing: run bash tools/setup.sh first" >&2
  exit 1
fi
export PATH="$PWD/.venv/bin:$PATH"

python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps .
cmake --preset dev >/dev/null
cmake --build --preset dev
python -m pytest "$@"
