#!/usr/bin/env bash
# Formats the working tree: clang-format 16 for C++ and CUDA, ruff for Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PWD/.venv/bin:$PATH"
python3 tests/lint/check_format.py --fix
ruff check --fix --quiet .
ruff format --quiet .
