#!/usr/bin/env bash
# Makes a virtual environment ready to build and test: setup.sh VENV TORCH_VERSION [REQUIREMENTS]...
# With "none" for the version it needs no torch and no compiler. Looks for what pip cannot bring,
# installs it where this is root on Debian, else prints the line.
set -euo pipefail
venv=$1 torch=$2
shift 2

need=()
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
  echo "bitpare needs python3 3.11 or newer" >&2
  exit 1
}
python3 -c 'import venv, ensurepip' 2>/dev/null || need+=(python3-venv)
if [ "$torch" != none ]; then
  python3 -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' || need+=(python3-dev)
  command -v g++ >/dev/null || need+=(g++)
  [ -e /usr/include/gtest/gtest.h ] || need+=(libgtest-dev)
fi
if [ ${#need[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    python3 tools/progress.py run "installing ${need[*]} with apt-get" \
      sh -c "apt-get update -q && apt-get install -y -q ${need[*]}"
  else
    missing=$(printf '%s\n' "${need[@]}" | grep -v '^libgtest-dev$' || true)
    if [ -n "$missing" ]; then  # without libgtest-dev, CMake fetches GoogleTest
      echo "please install first: apt-get install" $missing "(or your system's equivalent)" >&2
      exit 1
    fi
  fi
fi

# The file .ready says what is there: the torch, and a line for each file of requirements.
ready=$venv/.ready
[ "$(head -n 1 "$ready" 2>/dev/null)" = "torch $torch" ] || rm -f "$ready"
wanted=() lines=()
for file in "$@"; do
  line="$(sha256sum < "$file") $file"
  grep -qxF -- "$line" "$ready" 2>/dev/null || { wanted+=(-r "$file"); lines+=("$line"); }
done
[ -e "$ready" ] && [ ${#wanted[@]} = 0 ] && exit 0

title="installing ${lines[*]##* } into $venv"
if [ "$torch" != none ]; then
  [ -e "$ready" ] || title="installing torch $torch and the tools into $venv: 5 GB on disk, about 2 minutes"
  wanted+=("torch==$torch")
fi
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
pip=("$venv/bin/python" -m pip install --disable-pip-version-check "${wanted[@]}")
if [ -t 1 ] && [ ! -e "$ready" ]; then  # pip's own bars
  echo "$title"
  "${pip[@]}"
else
  python3 tools/progress.py run "$title" "${pip[@]}"
fi
[ -e "$ready" ] || echo "torch $torch" > "$ready"
for line in "${lines[@]}"; do
  sed -i "\\| ${line##* }\$|d" "$ready"
  echo "$line" >> "$ready"
done
