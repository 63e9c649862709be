# The laws of the kernels on NEON: cross-compiled by Debian's compiler, run by an emulator.
cmake_minimum_required(VERSION 3.22)
file(MAKE_DIRECTORY ${BINARY_DIR}/include)
# Header-only packages of the host, without the rest of its include directory.
foreach(package IN ITEMS xsimd doctest)
  find_path(directory_${package} NAMES ${package}/${package}.hpp ${package}/${package}.h ${package}.h PATH_SUFFIXES doctest
            PATHS ${XSIMD_INCLUDE} ${DOCTEST_INCLUDE} REQUIRED NO_CACHE)
endforeach()
file(CREATE_LINK ${directory_xsimd}/xsimd ${BINARY_DIR}/include/xsimd SYMBOLIC)
if(EXISTS ${directory_doctest}/doctest/doctest.h)
  file(CREATE_LINK ${directory_doctest}/doctest ${BINARY_DIR}/include/doctest SYMBOLIC)
else()
  file(CREATE_LINK ${directory_doctest} ${BINARY_DIR}/include/doctest SYMBOLIC)
endif()
set(objects "")
foreach(source IN ITEMS backend/test_simd_f64 backend/test_simd_f32 backend/test_simd_bf16 backend/test_simd_f16 support/main)
  get_filename_component(name ${source} NAME)
  execute_process(
    COMMAND ${COMPILER} -std=c++20 -O2 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -I${SOURCE_DIR}/include
            -I${SOURCE_DIR}/tests -isystem ${BINARY_DIR}/include -DMPIROUTER_TEST_DATA="" -c
            ${SOURCE_DIR}/tests/${source}.cpp -o ${BINARY_DIR}/${name}.o COMMAND_ERROR_IS_FATAL ANY)
  list(APPEND objects ${BINARY_DIR}/${name}.o)
endforeach()
execute_process(COMMAND ${COMPILER} -static ${objects} -o ${BINARY_DIR}/laws COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${EMULATOR} ${BINARY_DIR}/laws COMMAND_ERROR_IS_FATAL ANY)
