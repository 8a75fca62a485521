#!/usr/bin/env bash
# Kernels compiled, raced, tested, checked and timed on a bare CUDA machine:
#     bash benchmarks/gpu.sh --output FOLDER [--minutes 9] [--parts NAME...] [--dry]
# It ends 9 minutes after its first line. Results stand in FOLDER as they are found (default: a temporary folder outside
# the checkout). gpu/plan.py has the order and limits of the parts. A TRITON_CACHE_DIR that `python -m
# benchmarks.gpu.compiling --arch 90` filled elsewhere, under the same triton, saves the compiling.
# WHEELS=FOLDER first installs the wheels in it (the rivals; FOLDER/fallback if pytest is missing), without a network.
set -euo pipefail
started=${EPOCHREALTIME/,/.}
from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}

# Reading the versions imports nothing, which would take seconds.
"$python" - <<'CHECK'
import re, sys
from importlib.metadata import PackageNotFoundError, version
def found(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
def release(text): return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
if release(found("torch")) < (2, 11) or release(found("triton")) < (3, 6):
    sys.exit(f"expected torch >= 2.11 and triton >= 3.6, found torch {found('torch')}, triton {found('triton')}")
CHECK

if [[ -n ${WHEELS:-} ]]; then
    site=$(mktemp -d)
    install=("$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site")
    # Only the last parts need them, so the first ones do not wait.
    {
        if ! "$python" -c 'import pytest, hypothesis' 2>/dev/null; then
            "${install[@]}" "$WHEELS"/fallback/*.whl || echo "no pytest; its part is skipped" >&2
        fi
        "${install[@]}" "$WHEELS"/*.whl || echo "wheels of $WHEELS could not be installed; continuing without them" >&2
    } &
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi

exec "$python" -m benchmarks.gpu --started "$started" --from "$from" "$@"
