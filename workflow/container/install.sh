#!/bin/sh
# What the Dockerfile and apptainer.def install, in the folder that holds requirements.lock and, for the second step, the rest:
#
#   install.sh lock        all packages at the lock's versions, checked by its hashes
#   install.sh workflow    this package and its command, beside its Snakefile
#
# TORCH_INDEX: address of a package index with builds of torch for CPUs. torch and torchvision then come from there, at the
# lock's versions but not by its hashes, which are of other builds; the GPU's libraries stay out.
set -eu

case "$1" in
lock)
    lock=requirements.lock cpu=$(mktemp)
    if [ "${TORCH_INDEX:-lock}" != lock ]; then
        pinned=$(grep -oE '^torch(vision)?==[^ ;]+' "$lock")
        # shellcheck disable=SC2086 # two words
        pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" $pinned
        # an entry begins at a line's start, and its hashes are indented
        awk '/^[a-z0-9]/ {out = /^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z-]+)==/} !out' "$lock" >"$cpu"
        lock=$cpu
    fi
    pip install --no-cache-dir --no-deps -r "$lock"
    rm -f "$cpu"
    ;;
workflow)
    pip install --no-cache-dir --no-deps --no-build-isolation -e .
    python -m compileall -q src
    ;;
*)
    echo "install.sh lock|workflow" >&2
    exit 2
    ;;
esac
