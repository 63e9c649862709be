#!/usr/bin/env bash
# What the recipe runs: PREFIX is where to install to, CMAKE_ARGS what conda's compilers need.
set -euo pipefail
# shellcheck disable=SC2086 # words
cmake -S . -B build/conda -G Ninja ${CMAKE_ARGS:-} -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$PREFIX" \
  -DCMAKE_INSTALL_LIBDIR=lib -DMPIROUTER_BUILD_TESTS=OFF -DMPIROUTER_BUILD_EXAMPLES=OFF -DMPIROUTER_BUILD_BENCHMARKS=OFF \
  -DMPIROUTER_BUILD_DOCS=OFF -DMPIROUTER_FETCH_DEPENDENCIES=OFF -DMPIROUTER_WERROR=OFF -DMPIROUTER_MPI=OFF \
  -DMPIROUTER_DISPATCH=ON
cmake --build build/conda --parallel "${CPU_COUNT:-1}"
cmake --install build/conda
