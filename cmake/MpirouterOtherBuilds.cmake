# The tests once more, in other configurations: each is a build folder of its own and one entry of ctest, which
# configures, builds and runs it. The target mpirouter_other_builds builds them beforehand, where progress shows.
add_custom_target(mpirouter_other_builds)

# mpirouter_other_build(<name> [COMPILER <name of one>] PRESET <preset> [OPTIONS <option>…])
function(mpirouter_other_build name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "PRESET;COMPILER" "OPTIONS")
  if(arg_COMPILER)
    find_program(MPIROUTER_${arg_COMPILER} ${arg_COMPILER})
    mark_as_advanced(MPIROUTER_${arg_COMPILER})
    if(NOT MPIROUTER_${arg_COMPILER})
      message(STATUS "mpi_router: no ${arg_COMPILER}, so no test builds.${name}")
      add_test(NAME builds.${name} COMMAND ${CMAKE_COMMAND} -E false)
      set_tests_properties(builds.${name} PROPERTIES DISABLED TRUE)
      return()
    endif()
    list(APPEND arg_OPTIONS -DCMAKE_CXX_COMPILER=${MPIROUTER_${arg_COMPILER}})
  endif()
  set(folder ${PROJECT_BINARY_DIR}/builds/${name})
  set(configure
      ${CMAKE_COMMAND} -S ${PROJECT_SOURCE_DIR} -B ${folder} --preset ${arg_PRESET}
      -DCMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER} -DMPIROUTER_FETCH_DEPENDENCIES=OFF
      -DMPIROUTER_FULL_TESTS=${MPIROUTER_FULL_TESTS} ${arg_OPTIONS})
  cmake_host_system_information(RESULT cores QUERY NUMBER_OF_LOGICAL_CORES)
  add_custom_target(
    mpirouter_build_${name}
    COMMAND ${configure}
    COMMAND ${CMAKE_COMMAND} --build ${folder} --parallel ${cores}
    COMMENT "Build ${name}"
    USES_TERMINAL VERBATIM)
  add_dependencies(mpirouter_other_builds mpirouter_build_${name})
  add_test(NAME builds.${name}.build COMMAND ${CMAKE_COMMAND} --build ${PROJECT_BINARY_DIR} --target
                                             mpirouter_build_${name})
  add_test(NAME builds.${name} COMMAND ${CMAKE_CTEST_COMMAND} --test-dir ${folder} --output-on-failure --parallel
                                       ${cores} --no-tests=error)
  set_tests_properties(
    builds.${name}.build PROPERTIES FIXTURES_SETUP mpirouter_build_${name} TIMEOUT 3000 PROCESSORS ${cores})
  set_tests_properties(
    builds.${name} PROPERTIES FIXTURES_REQUIRED mpirouter_build_${name} TIMEOUT 3000 PROCESSORS ${cores})
  if(MPIROUTER_FULL_TESTS)
    set_tests_properties(builds.${name} builds.${name}.build PROPERTIES LABELS full)
  endif()
endfunction()

# ggml's sources, where this build has them: its tests run sanitized and with clang too.
FetchContent_GetProperties(ggml)
set(same_ggml -DMPIROUTER_GGML=AUTO -DFETCHCONTENT_SOURCE_DIR_GGML=)
if(ggml_SOURCE_DIR)
  set(same_ggml -DMPIROUTER_GGML=ON -DFETCHCONTENT_SOURCE_DIR_GGML=${ggml_SOURCE_DIR})
endif()

# The tests of the packaging look at installed files and flags of their own: once is enough.
set(laws -DMPIROUTER_PACKAGING_TESTS=OFF)
# Sanitized, the programs take longer to compile, or unoptimised to run, than all the rest: that is for full tests.
mpirouter_other_build(
  clang_sanitized COMPILER clang++-19 PRESET asan-ubsan
  OPTIONS ${laws} -DMPIROUTER_UNITY_BUILD=${MPIROUTER_UNITY_BUILD} -DMPIROUTER_BUILD_TOOLS=${MPIROUTER_FULL_TESTS}
          -DMPIROUTER_BUILD_EXAMPLES=${MPIROUTER_FULL_TESTS} ${same_ggml})
if(MPIROUTER_FULL_TESTS)
  mpirouter_other_build(gcc_sanitized PRESET asan-ubsan OPTIONS ${laws})
  mpirouter_other_build(clang_release COMPILER clang++-19 PRESET release OPTIONS -DMPIROUTER_BUILD_DOCS=OFF ${same_ggml})
  mpirouter_other_build(gcc_debug PRESET debug OPTIONS ${laws} -DMPIROUTER_BUILD_DOCS=OFF)

  # For Windows, under wine. The header-only packages are taken from this machine, apart from its other headers.
  set(stage ${PROJECT_BINARY_DIR}/builds/windows_headers)
  set(staged "")
  foreach(package IN ITEMS "Eigen3:Eigen:." "Eigen3:unsupported:." "doctest:doctest:." "nlohmann_json:nlohmann:include"
                           "xsimd:xsimd:include")
    string(REPLACE ":" ";" package ${package})
    list(GET package 0 name)
    list(GET package 1 headers)
    list(GET package 2 below)
    find_path(MPIROUTER_HOST_${headers} ${headers} PATH_SUFFIXES eigen3)
    mark_as_advanced(MPIROUTER_HOST_${headers})
    if(MPIROUTER_HOST_${headers})
      file(MAKE_DIRECTORY ${stage}/${below})
      file(CREATE_LINK ${MPIROUTER_HOST_${headers}}/${headers} ${stage}/${below}/${headers} SYMBOLIC)
      string(TOUPPER ${name} name)
      list(APPEND staged -DFETCHCONTENT_SOURCE_DIR_${name}=${stage})
    endif()
  endforeach()
  mpirouter_other_build(
    windows COMPILER x86_64-w64-mingw32-g++-posix PRESET release
    OPTIONS ${laws} ${staged}
            -DCMAKE_TOOLCHAIN_FILE=${PROJECT_SOURCE_DIR}/cmake/mingw-w64.cmake
            -DMPIROUTER_UNITY_BUILD=ON # alone, each of some sixty sources would include it all
            -DMPIROUTER_FETCH_DEPENDENCIES=ON
            -DMPIROUTER_FULL_TESTS=OFF
            -DMPIROUTER_BUILD_TOOLS=OFF
            -DMPIROUTER_BUILD_EXAMPLES=OFF
            -DMPIROUTER_BUILD_BENCHMARKS=OFF
            -DMPIROUTER_BUILD_DOCS=OFF
            -DMPIROUTER_MPI=OFF)
  set_tests_properties(builds.windows PROPERTIES ENVIRONMENT "WINEDEBUG=-all")

  # In fresh roots of the distributions, where this one may make them.
  add_test(NAME builds.distributions COMMAND ${PROJECT_SOURCE_DIR}/scripts/distributions --packages)
  set_tests_properties(builds.distributions PROPERTIES LABELS full SKIP_RETURN_CODE 77 TIMEOUT 7200)
endif()
