# Where to get a package that is not installed. Only header-only or small ones, and ggml where it is asked for; OpenMP,
# oneTBB and the CUDA toolkit come with the system or not at all.
include(FetchContent)

set(mpirouter_Eigen3_url https://gitlab.com/libeigen/eigen/-/archive/3.4.0/eigen-3.4.0.tar.bz2)
set(mpirouter_Eigen3_sha256 b4c198460eba6f28d34894e3a5710998818515104d6e74e5cc331ce31e46e626)
set(mpirouter_xsimd_url https://github.com/xtensor-stack/xsimd/archive/refs/tags/13.2.0.tar.gz)
set(mpirouter_xsimd_sha256 edd8cd3d548c185adc70321c53c36df41abe64c1fe2c67bc6d93c3ecda82447a)
set(mpirouter_nlohmann_json_url https://github.com/nlohmann/json/archive/refs/tags/v3.11.2.tar.gz)
set(mpirouter_nlohmann_json_sha256 d69f9deb6a75e2580465c6c4c5111b89c4dc2fa94e3a85fcd2ffcd9a143d9273)
set(mpirouter_doctest_url https://github.com/doctest/doctest/archive/refs/tags/v2.4.9.tar.gz)
set(mpirouter_doctest_sha256 19b2df757f2f3703a5e63cee553d85596875f06d91a3333acd80a969ef210856)
set(mpirouter_CLI11_url https://github.com/CLIUtils/CLI11/archive/refs/tags/v2.1.2.tar.gz)
set(mpirouter_CLI11_sha256 26291377e892ba0e5b4972cdfd4a2ab3bf53af8dac1f4ea8fe0d1376b625c8cb)
set(mpirouter_fmt_url https://github.com/fmtlib/fmt/archive/refs/tags/9.1.0.tar.gz)
set(mpirouter_fmt_sha256 5dea48d1fcddc3ec571ce2058e13910a0d4a6bab4cc09a809d8b1dd1c88ae6f2)
set(mpirouter_benchmark_url https://github.com/google/benchmark/archive/refs/tags/v1.7.1.tar.gz)
set(mpirouter_benchmark_sha256 6430e4092653380d9dc4ccb45a1e2dc9259d581f4866dc0759713126056bc1d7)
set(mpirouter_spectra_url https://github.com/yixuan/spectra/archive/refs/tags/v1.0.1.tar.gz)
set(mpirouter_spectra_sha256 919e3fbc8c539a321fd5a0766966922b7637cc52eb50a969241a997c733789f3)
# Compiling it takes minutes, so that it is fetched for MPIROUTER_GGML=ON alone.
set(mpirouter_ggml_url https://github.com/ggml-org/ggml/archive/refs/tags/v0.21.0.tar.gz)
set(mpirouter_ggml_sha256 3b0d4f1fe7c278824d4bb753b7402733576985689bd40e9cc719eca627131d24)

set(mpirouter_Eigen3_include .)
set(mpirouter_xsimd_include include)
set(mpirouter_nlohmann_json_include include)
set(mpirouter_doctest_include .)
set(mpirouter_CLI11_include include)
set(mpirouter_fmt_include include)
set(mpirouter_spectra_include include)

# Downloads <package>, checks its hash and makes <target>. Header-only packages are include paths and nothing more:
# their own build files, with their options, tests and install rules, stay out of this build.
macro(mpirouter_fetch package target)
  message(STATUS "mpi_router: ${package} is not installed, fetching ${mpirouter_${package}_url}")
  if(POLICY CMP0135)
    cmake_policy(SET CMP0135 NEW)
  endif()
  FetchContent_Declare(
    ${package}
    URL ${mpirouter_${package}_url}
    URL_HASH SHA256=${mpirouter_${package}_sha256})
  FetchContent_GetProperties(${package})
  string(TOLOWER ${package} lowercase)
  if(NOT ${lowercase}_POPULATED)
    FetchContent_Populate(${package})
  endif()
  if(DEFINED mpirouter_${package}_include)
    add_library(${target} INTERFACE IMPORTED GLOBAL)
    target_include_directories(${target} INTERFACE ${${lowercase}_SOURCE_DIR}/${mpirouter_${package}_include})
  else()
    set(CMAKE_POLICY_DEFAULT_CMP0077 NEW) # option() keeps these
    set(BENCHMARK_ENABLE_TESTING OFF)
    set(BENCHMARK_ENABLE_INSTALL OFF)
    set(BENCHMARK_ENABLE_WERROR OFF)
    set(GGML_CCACHE OFF)
    set(BUILD_SHARED_LIBS OFF)
    add_subdirectory(${${lowercase}_SOURCE_DIR} ${${lowercase}_BINARY_DIR} EXCLUDE_FROM_ALL)
  endif()
  if("${package}" STREQUAL "fmt")
    target_compile_definitions(${target} INTERFACE FMT_HEADER_ONLY)
  elseif("${package}" STREQUAL "spectra")
    target_link_libraries(${target} INTERFACE Eigen3::Eigen)
  elseif("${package}" STREQUAL "ggml")
    foreach(part IN ITEMS ggml ggml-base ggml-cpu) # as where it is installed: warnings of its headers are not this project's
      get_target_property(mpirouter_folders ${part} INTERFACE_INCLUDE_DIRECTORIES)
      set_target_properties(${part} PROPERTIES INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${mpirouter_folders}")
    endforeach()
  endif()
endmacro()

# Makes <target> of <package> available: finds it, or else fetches it where that is allowed, or where its sources are
# given (FETCHCONTENT_SOURCE_DIR_<PACKAGE>) and nothing is downloaded. Sets <package>_FOUND.
macro(mpirouter_require package target)
  mpirouter_find(${package} ${target})
  string(TOUPPER FETCHCONTENT_SOURCE_DIR_${package} mpirouter_given)
  if(NOT ${package}_FOUND AND NOT TARGET ${target} AND DEFINED mpirouter_${package}_url
     AND (MPIROUTER_FETCH_DEPENDENCIES OR ${mpirouter_given})
     AND ("${MPIROUTER_GGML}" STREQUAL "ON" OR NOT "${package}" STREQUAL "ggml"))
    mpirouter_fetch(${package} ${target})
    set(${package}_FOUND TRUE)
  endif()
endmacro()
