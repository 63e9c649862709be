#!/usr/bin/env bash
# What it costs to compile programs of the pages: processor seconds of the compiler, the least of five in turn, and the size of
# the program, stripped. Needs g++, gcc, Eigen, xsimd, and for the last line a built libmpi_router_c.so.
#   bench/compile/compile.sh [FOLDER of libmpi_router_c.so]
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

take() { # PAGE NUMBER SUFFIX NAME: the program of a page, as the tests take it out
  mkdir -p "$work/$4.page"
  awk -v folder="$work/$4.page" -f tests/docs/programs.awk "$1"
  cp "$work/$4.page/$2.$3" "$work/$4.$3"
}
take README.md 1 cpp readme
take docs/guide-embed.md 2 cpp simd
take docs/guide-verify.md 1 cpp verify
take docs/guide-c.md 1 c c
echo '#include <mpi_router/mpi_router.hpp>' >"$work/umbrella.cpp"
# The standard headers that the umbrella and what it includes ask for.
g++ -std=c++20 -Iinclude -MM "$work/umbrella.cpp" | tr -d '\\' | tr ' ' '\n' | grep '^include/' |
  xargs grep -ohE '^#include <[a-z_]+>' | sort -u >"$work/standard.cpp"

cases=(
  "standard|g++ -std=c++20 -O2|"
  "umbrella|g++ -std=c++20 -O2|"
  "readme|g++ -std=c++20 -O2|"
  "simd|g++ -std=c++20 -O3 -march=native -fopenmp|-fopenmp"
  "verify|g++ -std=c++20 -O2 -isystem /usr/include/eigen3|"
  "c|gcc -std=c99 -O2|-L${1-.} -lmpi_router_c"
)
for _ in 1 2 3 4 5; do
  for case in "${cases[@]}"; do
    IFS='|' read -r name compile _ <<<"$case"
    source=$(ls "$work/$name".c*)
    TIMEFORMAT='%U %S'
    { time $compile -Iinclude -c "$source" -o "$work/$name.o" 2>"$work/why"; } 2>&1 | awk '{ print $1 + $2 }' >>"$work/$name.times"
  done
done
for case in "${cases[@]}"; do
  IFS='|' read -r name compile link <<<"$case"
  size=
  if grep -q main "$work/$name".c* && $compile "$work/$name.o" -o "$work/program" $link 2>"$work/why"; then
    strip "$work/program"
    size="$(($(stat -c %s "$work/program") / 1024)) KiB"
  fi
  printf '| %-9s | %-46s | %5.2f s | %s |\n' "$name" "\`$compile -c\`" "$(sort -n "$work/$name.times" | head -1)" "$size"
done
