#!/usr/bin/env bash
# pkg_config.sh SOURCES PREFIX FOLDER COMPILER: builds and runs the consumers with pkg-config and a compiler alone, against a
# copy of the installed files in another place.
set -euo pipefail
sources=$1 prefix=$2 folder=$3 compiler=$4
if ! command -v pkg-config >/dev/null; then echo "skipped: no pkg-config" && exit 77; fi
rm -rf -- "$folder"
mkdir -p -- "$folder"
cp -a -- "$prefix" "$folder/moved"
configs=("$folder"/moved/share/pkgconfig "$folder"/moved/lib/pkgconfig "$folder"/moved/lib/*/pkgconfig)
PKG_CONFIG_PATH=$(IFS=:; echo "${configs[*]}")
export PKG_CONFIG_PATH

version=$(pkg-config --modversion mpi_router)
header=$(awk '/define/ { printf "%s%s", dot, $3; dot = "." }' "$folder"/moved/include/mpi_router/core/version.hpp)
if [[ $version != "$header" ]]; then echo "mpi_router.pc is of version $version" && exit 1; fi
if grep -rlF "$prefix/" "$folder"/moved/{share,lib}/pkgconfig "$folder"/moved/lib/*/pkgconfig 2>/dev/null; then
  echo "a .pc file names the place that it was installed to" && exit 1
fi

packages=(mpi_router) definitions=()
if pkg-config --exists mpi_router_dispatch; then packages+=(mpi_router_dispatch) definitions+=(-DWITH_dispatch); fi
# shellcheck disable=SC2046 # words
"$compiler" -std=c++20 "${definitions[@]}" "$sources/project/main.cpp" $(pkg-config --cflags --libs "${packages[@]}") \
  -o "$folder/consumer"
"$folder/consumer"

if pkg-config --exists mpi_router_c && command -v cc >/dev/null; then
  library=$(pkg-config --variable=libdir mpi_router_c)
  # shellcheck disable=SC2046 # words
  cc -std=c99 "$sources/c_project/main.c" $(pkg-config --cflags --libs mpi_router_c) -Wl,-rpath,"$library" -o "$folder/in_c"
  "$folder/in_c"
  # shellcheck disable=SC2046 # words
  cc -std=c99 "$sources/c_project/main.c" $(pkg-config --cflags mpi_router_c) "$library/libmpi_router_c.a" \
    $(pkg-config --static --libs mpi_router_c | sed 's/-lmpi_router_c//') -o "$folder/in_c_static"
  "$folder/in_c_static"
fi
