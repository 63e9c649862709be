#!/usr/bin/env bash
# single_header.sh ROOT FOLDER [COMPILER…]: README's programs with the single header alone, each linked with a second
# translation unit that includes it; and the one error where it meets the headers that it is made from.
set -euo pipefail
root=$1 folder=$2
. "$root/tests/packaging/amalgamated/programs.sh"
mapfile -t compilers < <(available "${@:3}")
if (($# == 2)); then mapfile -t compilers < <(available g++-12 clang++-19); fi
if ((${#compilers[@]} == 0)); then mapfile -t compilers < <(available c++); fi
if ((${#compilers[@]} == 0)); then echo "skipped: no compiler" && exit 77; fi

page_programs "$root" "$folder"
sed -i 's,<mpi_router/mpi_router.hpp>,"mpi_router.hpp",' "$folder"/*.cpp
cat >"$folder/second.cc" <<'END'
#include "mpi_router.hpp"
double second(const double* a, double* row) {  // one step, with storage of its own
  return mpi_router::power_step(mpi_router::gram(mpi_router::gate_fd(a, 2, 2)), mpi_router::row_major(row, 1, 2).row(0),
                                mpi_router::row_major(row, 1, 2).row(0), 1.0).rayleigh;
}
END
options=(-std=c++20 -O0 -DMPIROUTER_ALWAYS_INLINE=inline "${warnings[@]}" -I "$root/single_include")
for compiler in "${compilers[@]}"; do
  "$compiler" "${options[@]}" -c "$folder/second.cc" -o "$folder/second.o"
  for program in "$folder"/*.cpp; do
    "$compiler" "${options[@]}" "$program" "$folder/second.o" -o "$folder/program"
    prints "$folder/program" "${program%.cpp}.out"
  done
  for order in "mpi_router.hpp mpi_router/core/error.hpp" "mpi_router/core/error.hpp mpi_router.hpp"; do
    # shellcheck disable=SC2086 # two headers
    if printf '#include <%s>\n' $order | "$compiler" "${options[@]}" -I "$root/include" -x c++ -fsyntax-only - \
      2>"$folder/error"; then
      echo "$compiler: $order should be refused" && exit 1
    fi
    if ! grep -q 'include one or the others' "$folder/error" || (($(grep -c 'error: ' "$folder/error") > 2)); then
      cat "$folder/error" && exit 1
    fi
  done
  echo "$compiler: good"
done
