#!/usr/bin/env bash
# Random calls of every op, random changes of integer models, and libFuzzer on the readers of files:
# fuzz.sh VENV BUILD SECONDS [SEED]. Half of the time goes to each.
set -euo pipefail
venv=$1 build=$2 seconds=$3 seed=${4:-0}
python=$venv/bin/python
"$python" tests/python/fuzz.py --seconds $((seconds / 2)) --seed "$seed"

mkdir -p "$build/corpus"
cat > "$build/none.cpp" <<< 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }'
if ! clang++ -fsanitize=fuzzer "$build/none.cpp" -o "$build/none" 2> /dev/null; then
  echo "readers: not tried, clang++ with libFuzzer is missing (apt-get install clang libclang-rt-dev)"
  exit 0
fi
mapfile -t facts < <("$python" -I cmake/torch_facts.py | tr ';' '\n')
torch=${facts[1]}
flags=(-std=gnu++20 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined
  -Icsrc -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include"
  "-D_GLIBCXX_USE_CXX11_ABI=${facts[2]}")
clang++ "${flags[@]}" tests/fuzz/fuzz_reader.cpp csrc/integer/{json,spec,file}.cpp \
  -o "$build/reader" -L"$torch/lib" -Wl,-rpath,"$torch/lib" -ltorch_cpu -lc10
"$python" tests/python/fuzz.py --corpus "$build/corpus"
# 50 times what a file has: the limits of memory are part of what is tried.
ASAN_OPTIONS=detect_leaks=0 "$build/reader" -max_total_time=$((seconds / 2)) -seed="$((seed + 1))" \
  -max_len=65536 -rss_limit_mb=2048 -malloc_limit_mb=256 -timeout=20 -print_final_stats=1 \
  -artifact_prefix="$build/" "$build/corpus" > "$build/reader.log" 2>&1 ||
  { tail -40 "$build/reader.log"; exit 1; }
grep -E "number_of_executed_units|new_units_added|peak_rss" "$build/reader.log" | sed 's/^/readers: /'
