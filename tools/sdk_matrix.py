"""Run the client's tests under several versions of the openai SDK, each in a fresh virtual environment.

    python tools/sdk_matrix.py                    the oldest SDK supported (2.0.0, httpx) and the newest (httpx2)
    python tools/sdk_matrix.py --all              also the newest 2 and the oldest 3, and the first with fixed timeouts
    python tools/sdk_matrix.py --sdk 'openai==2.54.0' -- -k stream

What follows `--` goes to pytest. Tests over the native engine run where it is built into python/gemmantle.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENDS = ["openai==2.0.0", "openai<4"]
OTHERS = ["openai==2.31.0", "openai<3", "openai==3.0.0"]
PACKAGES = [
    "botocore", "httpx==0.28.1", "jsonschema", "llguidance>=1.9,<2", "numpy", "pillow", "protobuf", "pytest",
    "pytest-asyncio", "sentencepiece", "tokenizers", "trio", "uvicorn",
]  # fmt: skip
TESTS = [
    "acceptance", "test_client.py", "test_client_async.py", "test_client_native.py", "test_api.py", "test_cli.py",
    "test_remote.py", "test_walkthrough.py",
]  # fmt: skip


def run_one(sdk: str, folder: Path, extra: list[str]) -> tuple[str, bool]:
    """Version that was installed, and whether the tests passed."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", sdk, *PACKAGES], check=True)
    ask = [python, "-c", "import openai; print(openai.__version__)"]
    version = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    print(f"-- openai {version}", flush=True)
    tests = [str(ROOT / "tests" / "python" / name) for name in TESTS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, *extra]
    return version, subprocess.run(command, cwd=ROOT, env=environment).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdk", action="append", help="a requirement such as openai==2.54.0; may be repeated")
    parser.add_argument("--all", action="store_true", help="also versions between the two ends")
    options, extra = parser.parse_known_args()
    wanted = options.sdk or (ENDS + OTHERS if options.all else ENDS)
    results = []
    with tempfile.TemporaryDirectory(prefix="sdk-matrix-") as base:
        for number, sdk in enumerate(wanted):
            results.append(run_one(sdk, Path(base) / str(number), [word for word in extra if word != "--"]))
    for version, passed in results:
        print(f"openai {version:10} {'passed' if passed else 'FAILED'}")
    return 0 if all(passed for _, passed in results) else 1


if __name__ == "__main__":
    sys.exit(main())
