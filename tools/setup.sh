#!/usr/bin/env bash
# Sets everything up on a Debian-like machine and streams a first answer from real weights.
#
# System packages (as root, or through sudo), a virtual environment in .venv, this package with its demonstration
# weights and its test tools. Running it again is cheap. PYTHON names another interpreter; --no-answer skips the answer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(g++ cmake ninja-build ccache python3-dev python3-venv libeigen3-dev nlohmann-json3-dev libgtest-dev clang-format-16)
if command -v dpkg-query >/dev/null; then
  missing=()
  for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
  done
  if ((${#missing[@]})); then
    if [[ $EUID -eq 0 ]]; then root=(); else root=(sudo); fi
    if [[ $EUID -ne 0 ]] && ! command -v sudo >/dev/null; then
      echo "setup: these packages are missing; install them as root and run this again: ${missing[*]}" >&2
      exit 1
    fi
    "${root[@]}" apt-get update -o DPkg::Lock::Timeout=300 -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -o DPkg::Lock::Timeout=300 -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  fi
else
  echo "setup: no dpkg here; this needs a C++20 compiler, CMake 3.25, Eigen 3.4 and nlohmann-json (or network for CMake)" >&2
fi

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "setup: $python is older than Python 3.11; name another one: PYTHON=python3.11 bash tools/setup.sh" >&2
  exit 1
fi
[[ -x .venv/bin/python ]] || "$python" -m venv .venv
# Built in the environment itself: tools/test.sh then rebuilds only what changed.
pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" ninja pybind11 scikit-build-core
PATH="$PWD/.venv/bin:$PATH" "${pip[@]}" --no-build-isolation '.[demo,test]'

if [[ ${1:-} != --no-answer ]]; then
  .venv/bin/gemmantle complete gemma-3-270m \
    "The capital of France is Paris. The capital of Italy is Rome. The capital of Japan is"
fi
