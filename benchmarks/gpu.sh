#!/usr/bin/env bash
# Correctness, checkers, ceilings and times on a bare CUDA machine: bash benchmarks/gpu.sh [--output FOLDER] [--dry]
# It stops after 9.5 minutes (--minutes). gpu/__main__.py has the order and limits of its parts; --parts NAME... runs some.
# WHEELS=FOLDER first installs the wheels in it (the rivals; FOLDER/fallback if pytest is missing), without a network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}

if [[ -n ${WHEELS:-} ]]; then
    site=$(mktemp -d)
    install=("$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site")
    "${install[@]}" "$WHEELS"/*.whl || echo "wheels of $WHEELS could not be installed; continuing without them" >&2
    if ! "$python" -c 'import pytest, hypothesis' 2>/dev/null; then
        "${install[@]}" "$WHEELS"/fallback/*.whl || echo "no pytest; its part is skipped" >&2
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
