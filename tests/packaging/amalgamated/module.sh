#!/usr/bin/env bash
# module.sh ROOT FOLDER [CLANG…]: README's programs with `import mpi_router;` in place of the include, linked with a second
# translation unit that includes the headers. By hand: CMake knows modules from 3.28 on.
set -euo pipefail
root=$1 folder=$2
. "$root/tests/packaging/amalgamated/programs.sh"
mapfile -t compilers < <(available "${@:3}")
if (($# == 2)); then mapfile -t compilers < <(available clang++-16 clang++-19); fi
if ((${#compilers[@]} == 0)); then echo "skipped: no clang of version 16 or 19" && exit 77; fi

page_programs "$root" "$folder"
sed -i '/#include <mpi_router\/mpi_router.hpp>/d; 0,/^$/s//import mpi_router;\n/' "$folder"/*.cpp
cat >"$folder/second.cc" <<'END'
#include <mpi_router/mpi_router.hpp>
mpi_router::index_t second(const mpi_router::vector_view<const double>& row) { return row.size(); }
END
options=(-std=c++20 -O0 -DMPIROUTER_ALWAYS_INLINE=inline "${warnings[@]}")
for compiler in "${compilers[@]}"; do
  "$compiler" "${options[@]}" -I "$root/include" --precompile "$root/include/mpi_router/mpi_router.cppm" -o "$folder/mpi_router.pcm"
  "$compiler" -c "$folder/mpi_router.pcm" -o "$folder/mpi_router.o"
  "$compiler" "${options[@]}" -I "$root/include" -c "$folder/second.cc" -o "$folder/second.o"
  for program in "$folder"/*.cpp; do
    "$compiler" "${options[@]}" -fmodule-file=mpi_router="$folder/mpi_router.pcm" "$program" "$folder/mpi_router.o" \
      "$folder/second.o" -o "$folder/program"
    prints "$folder/program" "${program%.cpp}.out"
  done
  echo "$compiler: good"
done
