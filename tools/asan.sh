#!/usr/bin/env bash
# Address and undefined behaviour sanitizers over the C++ tests and a Python smoke test:
# asan.sh VENV BUILD JOBS
set -euo pipefail
venv=$1 build=$2 jobs=$3
"$venv/bin/cmake" -S . -B "$build" -G Ninja -DBITPARE_ASAN=ON -DBITPARE_TESTS=ON \
  -DBITPARE_CUDA=OFF -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DBITPARE_PYTHON="$(realpath "$venv")/bin/python" > /dev/null
"$venv/bin/python" tools/progress.py build "$build" "$jobs"
# torch itself leaks at exit.
export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0
"$venv/bin/ctest" --test-dir "$build" --output-on-failure -j "$jobs"

package=$build/python/bitpare
mkdir -p "$package"
(cd python && find bitpare bitpare_cli -name "*.py" -exec install -D {} "../$build/python/{}" \;)
"$venv/bin/cmake" --install "$build" --prefix "$package" > /dev/null
runtime=$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so):$(g++ -print-file-name=libstdc++.so.6)
LD_PRELOAD=$runtime PYTHONPATH=$build/python "$venv/bin/python" tests/python/smoke.py
LD_PRELOAD=$runtime PYTHONPATH=$build/python "$venv/bin/python" tests/python/fuzz.py --seconds 60
