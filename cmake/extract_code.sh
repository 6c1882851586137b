#!/usr/bin/env bash
# Copies the ```cpp blocks of a page, in order, to a source file: extract_code.sh PAGE.md SOURCE.cpp
# Compiler messages name the line of the page.
set -euo pipefail
page=$1 source=$2
mkdir -p "$(dirname "$source")"
awk -v page="$page" '
  /^```cpp$/ { on = 1; printf "#line %d \"%s\"\n", NR + 1, page; next }
  /^```/     { on = 0 }
  on' "$page" >"$source.new"
if [[ ! -s $source.new ]]; then
  echo "$page: found no \`\`\`cpp block; expected at least one, as the page says it is compiled" >&2
  exit 1
fi
mv "$source.new" "$source"
