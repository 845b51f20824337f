#!/bin/bash
# All that only a GPU can say, in one call of at most 13 minutes on one H100 or H200 of a bare machine: Python 3.12, torch 2.11
# with CUDA, no package index. The sections: benchmarks/gpu/sections.py.
#
#   benchmarks/gpu.sh prepare WHEELS [PYTHON]   here, with a network: collect what such a machine lacks. With PYTHON, an
#                                               interpreter 3.12 with torch 2.11, and nvcc, gsplat is compiled for it too
#   benchmarks/gpu.sh run WHEELS OUT […]        there: OUT/gpu.json; further words go to `python -m benchmarks.gpu`
#   benchmarks/gpu.sh rehearse OUT [PYTHON]     anywhere: every section, tiny, on the CPU
#
# OUT/csrc.so.xz is what was compiled there: put into WHEELS, it spares the next run the compilation.
# Where a call may take ten minutes only, make two on the same machine; the second adds to the first one's OUT/gpu.json, which
# must be there again:
#   benchmarks/gpu.sh run WHEELS OUT --minutes 9 --sections rates vggt dgs_lrm attention vggt_train vggt_compiled
#   benchmarks/gpu.sh run WHEELS OUT --minutes 3.5 --sections tests splats step
# Afterwards: python benchmarks/gpu_tables.py OUT/gpu.json writes docs/results/gpu.json and the tables of docs/scaling.md.
set -euo pipefail
cd "$(dirname "$0")/.."

# what the package imports and its GPU tests; what is there already is not installed again. Wheels of one Python: 3.12
PACKAGES=(
  gsplat==1.5.3 webdataset==1.0.2 braceexpand==0.1.7 omegaconf==2.4.0 roma==1.8.0 xformers==0.0.35 beartype==0.23.1
  lightning==2.6.6 pytorch-lightning==2.6.6 lightning-utilities==0.15.3 torchmetrics==1.9.0 timm==1.0.31 jaxtyping==0.3.11
  wadler-lindig==0.1.7 safetensors==0.8.0 rich==14.3.4 markdown-it-py==4.2.0 mdurl==0.1.2 pygments==2.20.0
  fsspec==2026.9.0 ninja==1.13.2 packaging pytest pluggy iniconfig pytest-timeout hypothesis==6.170.15 sortedcontainers tqdm pyyaml
)
PLATFORMS=(manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux1_x86_64)

prepare() {
  local wheels=$1 python=${2:-}
  mkdir -p "$wheels"
  python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    $(printf -- '--platform %s ' "${PLATFORMS[@]}") --dest "$wheels" "${PACKAGES[@]}"
  git describe --always --abbrev=40 --exclude='*' --dirty=+ > "$wheels/commit.txt"
  if [ -n "$python" ]; then
    local site
    site=$(mktemp -d)
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/gsplat-*.whl
    PYTHONPATH=$PWD:$site "$python" -m benchmarks.gpu.build "$wheels"
    rm -rf "$site"
  fi
  du -sh "$wheels"
}

install() { # what this interpreter lacks, into a folder that comes first on its path
  local wheels=$1 python=$2 site=$3 lacking
  lacking=$(PYTHONPATH=$site "$python" - "$wheels" <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

for wheel in sorted(Path(sys.argv[1]).glob("*.whl")):
    try:
        version(wheel.name.split("-")[0].replace("_", "-"))
    except PackageNotFoundError:
        print(wheel)
PYTHON
  )
  if [ -n "$lacking" ]; then
    echo "installing: $(echo $lacking | xargs -n 1 basename | cut -d- -f1 | xargs)"
    echo "$lacking" | xargs "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site"
  fi
  if [ -f "$wheels/csrc.so.xz" ] && [ -d "$site/gsplat" ] && [ ! -f "$site/gsplat/csrc.so" ]; then
    "$python" -c 'import lzma, sys; sys.stdout.buffer.write(lzma.open(sys.argv[1]).read())' "$wheels/csrc.so.xz" \
      > "$site/gsplat/csrc.so"
  fi
}

run() {
  local wheels=$1 out=$2 python=${PYTHON:-python3} site
  shift 2
  mkdir -p "$out"
  # kept between the calls of one machine: kernels are compiled once
  site=${SITE:-${TMPDIR:-/tmp}/four_d_gpu_site}
  install "$wheels" "$python" "$site"
  export CARRIED=$wheels PYTHONPATH=$PWD:$site PYTHONUNBUFFERED=1
  unset PYTHONDONTWRITEBYTECODE
  "$python" -m benchmarks.gpu --out "$out" "$@"
}

case "${1:-}" in
  prepare) [ $# -ge 2 ] && prepare "${@:2}" ;;
  run) [ $# -ge 3 ] && run "${@:2}" ;;
  rehearse)
    [ $# -ge 2 ] && PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} "${3:-python3}" -m benchmarks.gpu --out "$2" --device cpu --tiny \
      --stretch 10 --minutes 60
    ;;
  *) sed -n '2,18s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
