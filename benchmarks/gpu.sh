#!/usr/bin/env bash
# Training speed on a GPU in one command, in four minutes: JSON into $OUT (default gpu-out/).
#
#   benchmarks/gpu.sh [options of benchmarks/gpu.py]     e.g. --batch-size 128, or --device cpu --tiny for a trial
#
# Needs python3 (or $PYTHON) with torch and the packages listed below. What is missing is installed from the folder of
# wheels $WHEELS (default .whl/), if there is one, without a network and into a temporary folder.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
wheels=${WHEELS:-.whl}
out=${OUT:-gpu-out}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

missing() {
    "$python" - <<'PY'
import importlib.util
names = "torch torchvision timm numpy cv2 PIL simplejpeg webdataset braceexpand safetensors yaml pyarrow"
names += " jsonargparse typeshed_client huggingface_hub filelock tqdm"  # imported by those; pip gets --no-deps
print(" ".join(name for name in names.split() if importlib.util.find_spec(name) is None))
PY
}

absent=$(missing)
if [ -n "$absent" ] && compgen -G "$wheels/*.whl" >/dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
    export PYTHONPATH="$PYTHONPATH:$site"
    absent=$(missing)
fi
if [ -n "$absent" ]; then
    echo "missing: $absent; install them, or put their wheels into $wheels/" >&2
    exit 1
fi
limit=$(command -v timeout >/dev/null && echo "timeout 300" || true)
PYTHONUNBUFFERED=1 $limit "$python" benchmarks/gpu.py --out "$out" "$@"
