#!/usr/bin/env bash
# single_header.sh ROOT FOLDER [COMPILER…]: README's programs with the single header alone, each linked with a second
# translation unit that includes it; the one error where it meets the headers that it is made from, or another copy of itself;
# and two versions of it in one program, each with its own code.
set -euo pipefail
root=$1 folder=$2
. "$root/tests/packaging/amalgamated/programs.sh"
mapfile -t compilers < <(available "${@:3}")
if (($# == 2)); then
  mapfile -t compilers < <(available g++-12 clang++-19)
  if ((${#compilers[@]} == 0)); then mapfile -t compilers < <(available c++); fi
fi
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
# The next minor version, whose radius is another, and one source file for each.
mkdir "$folder/next"
sed 's/^\(#define MPIROUTER_VERSION_MINOR\) .*/\1 99/; s/return value_ \/ std::sqrt/return 5 \/ std::sqrt/' "$root/single_include/mpi_router.hpp" \
  >"$folder/next/mpi_router.hpp"
cat >"$folder/radius.cc" <<'END'
#include "mpi_router.hpp"
double RADIUS() { return mpi_router::router_radius::scale_free(4).of(1); }
END
cat >"$folder/radii.cc" <<'END'
#include <cstdio>
double radius_now();
double radius_next();
int main() { std::printf("%g %g\n", radius_now(), radius_next()); }
END
echo "4 5" >"$folder/radii.expected"

options=(-std=c++20 -O0 -DMPIROUTER_ALWAYS_INLINE=inline "${warnings[@]}" -I "$root/single_include")
for compiler in "${compilers[@]}"; do
  "$compiler" "${options[@]}" -c "$folder/second.cc" -o "$folder/second.o"
  for program in "$folder"/*.cpp; do
    "$compiler" "${options[@]}" "$program" "$folder/second.o" -o "$folder/program"
    prints "$folder/program" "${program%.cpp}.out"
  done
  "$compiler" "${options[@]}" -DRADIUS=radius_now -c "$folder/radius.cc" -o "$folder/now.o"
  "$compiler" "${options[@]/%"$root/single_include"/"$folder/next"}" -DRADIUS=radius_next -c "$folder/radius.cc" -o "$folder/next.o"
  "$compiler" "${options[@]}" "$folder/radii.cc" "$folder/now.o" "$folder/next.o" -o "$folder/radii"
  prints "$folder/radii" "$folder/radii.expected"
  for order in "mpi_router.hpp mpi_router/core/error.hpp" "mpi_router/core/error.hpp mpi_router.hpp" \
    "mpi_router.hpp next/mpi_router.hpp"; do
    # shellcheck disable=SC2086 # two headers
    if printf '#include <%s>\n' $order | "$compiler" "${options[@]}" -I "$root/include" -I "$folder" -x c++ -fsyntax-only - \
      2>"$folder/error"; then
      echo "$compiler: $order should be refused" && exit 1
    fi
    if ! grep -Eq 'include one( or the others|, of one version)' "$folder/error" || (($(grep -c 'error: ' "$folder/error") > 2)); then
      cat "$folder/error" && exit 1
    fi
  done
  echo "$compiler: good"
done
