# Files compiled for one instruction set must define nothing that another's copy could replace at
# link time: no weak (W, V) or unique (u) symbol. Usage: no_weak_symbols.sh OBJECT...
found=$(nm -C "$@" | grep -E '^[0-9a-f]+ [WVu] ')
if [ -n "$found" ]; then
  echo "$found"
  exit 1
fi
