#!/usr/bin/env bash
# Correctness, checkers, ceilings and times on a bare CUDA machine: bash benchmarks/gpu.sh [--output FOLDER] [--dry]
# It stops after 9.5 minutes (--minutes); limits of its parts and their order are in gpu.py, --parts NAME... runs some.
# WHEELS=FOLDER installs the wheels in it first (the rivals; and FOLDER/fallback if pytest is missing), with no network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}

if [[ -n ${WHEELS:-} ]]; then
    site=$(mktemp -d)
    install=("$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site")
    "${install[@]}" "$WHEELS"/*.whl || echo "wheels of $WHEELS could not be installed; going on without them" >&2
    if ! "$python" -c 'import pytest, hypothesis' 2>/dev/null; then
        "${install[@]}" "$WHEELS"/fallback/*.whl || echo "no pytest; its part will be skipped" >&2
    fi
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi

"$python" - <<'CHECK'
import re, sys
try:
    import torch, triton
except ImportError as error:
    sys.exit(f"expected torch >= 2.11 and triton >= 3.6, found: {error}")
def release(text): return tuple(int(part) for part in re.findall(r"\d+", text)[:2])
if release(torch.__version__) < (2, 11) or release(triton.__version__) < (3, 6):
    sys.exit(f"expected torch >= 2.11 and triton >= 3.6, found torch {torch.__version__}, triton {triton.__version__}")
CHECK

exec "$python" -m benchmarks.gpu "$@"
