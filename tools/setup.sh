#!/usr/bin/env bash
# Makes a virtual environment ready to build and test: setup.sh VENV TORCH_VERSION [REQUIREMENTS]...
# Looks for what pip cannot bring, installs it where this is root on Debian, else prints the line.
set -euo pipefail
venv=$1 torch=$2
shift 2

need=()
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
  echo "bitpare needs python3 3.11 or newer" >&2
  exit 1
}
python3 -c 'import venv, ensurepip' 2>/dev/null || need+=(python3-venv)
python3 -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' || need+=(python3-dev)
command -v g++ >/dev/null || need+=(g++)
[ -e /usr/include/gtest/gtest.h ] || need+=(libgtest-dev)
if [ ${#need[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing ${need[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${need[@]}" >/dev/null
  else
    missing=$(printf '%s\n' "${need[@]}" | grep -v '^libgtest-dev$' || true)
    if [ -n "$missing" ]; then  # without libgtest-dev, CMake fetches GoogleTest
      echo "please install first: apt-get install" $missing "(or your system's equivalent)" >&2
      exit 1
    fi
  fi
fi

wanted="torch==$torch $(cat "$@" | sha256sum)"
[ "$(cat "$venv/.ready" 2>/dev/null)" = "$wanted" ] && exit 0
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
echo "installing torch $torch and the tools into $venv"
requirements=()
for file in "$@"; do requirements+=(-r "$file"); done
"$venv/bin/python" -m pip install -q --disable-pip-version-check "torch==$torch" "${requirements[@]}"
echo "$wanted" > "$venv/.ready"
