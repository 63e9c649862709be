# The project's own executables: warnings on, and tests registered with ctest.

# Warnings, sanitizers, and C++20 for .cu files, by its flag: CMake knows CUDA20 only from 3.25.2 on.
function(mpirouter_set_options target)
  set(gnu_like $<CXX_COMPILER_ID:GNU,Clang,AppleClang>)
  target_compile_options(
    ${target}
    PRIVATE $<$<AND:$<COMPILE_LANGUAGE:CXX>,${gnu_like}>:-Wall;-Wextra;-Wpedantic;-Wconversion;-Wshadow>
            $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CXX_COMPILER_ID:MSVC>>:/W4;/utf-8>)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANG_AND_ID:CUDA,NVIDIA>:-std=c++20>)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # g++ 12 finds overlaps in its own std::string where there are none (GCC bug 105651), and unset packets in the dot
    # products of Eigen 5.
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict;-Wno-maybe-uninitialized>)
  endif()
  if(MPIROUTER_WERROR)
    target_compile_options(
      ${target}
      PRIVATE $<$<AND:$<COMPILE_LANGUAGE:CXX>,${gnu_like}>:-Werror>
              $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CXX_COMPILER_ID:MSVC>>:/WX>
              $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
  endif()
  if(MPIROUTER_SANITIZE)
    # A report ends the program: undefined behaviour must not hide in a log.
    target_compile_options(
      ${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${MPIROUTER_SANITIZE};-fno-sanitize-recover=all;-fno-omit-frame-pointer>)
    target_link_options(${target} PRIVATE -fsanitize=${MPIROUTER_SANITIZE})
    # Inlined by force, unoptimised code takes ten times as long to compile.
    target_compile_definitions(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:MPIROUTER_ALWAYS_INLINE=inline>)
  endif()
endfunction()

# mpirouter_set_cuda(<target> <architecture>…): options of a target of .cu files. PTX alone (80-virtual) compiles in half
# the time, and the driver compiles it for the GPU at hand, along the path of sm_80.
function(mpirouter_set_cuda target)
  target_link_libraries(${target} PRIVATE mpi_router::cuda)
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES "${ARGN}" POSITION_INDEPENDENT_CODE ON)
  mpirouter_set_options(${target})
  # Most places only compile them; scripts/gpu, which times, optimises in full.
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANG_AND_ID:CUDA,NVIDIA>:-Xcicc=-O1>)
endfunction()

# Eigen's decompositions, compiled once for all that need them: they take each translation unit half a minute.
function(mpirouter_add_decompositions)
  if(NOT TARGET mpi_router_decompositions)
    add_library(mpi_router_decompositions STATIC ${PROJECT_SOURCE_DIR}/cmake/decompositions/decompositions.cpp)
    target_link_libraries(mpi_router_decompositions PRIVATE mpi_router::verify)
    if(MPIROUTER_SANITIZE) # not for this: it is Eigen's code, and sanitized it takes as long as ten tests
      target_compile_options(mpi_router_decompositions PRIVATE -O1)
      target_compile_definitions(mpi_router_decompositions PRIVATE MPIROUTER_ALWAYS_INLINE=inline)
    else()
      mpirouter_set_options(mpi_router_decompositions)
    endif()
  endif()
endfunction()

# Links them.
function(mpirouter_link_decompositions target)
  mpirouter_add_decompositions()
  target_compile_definitions(${target} PRIVATE MPIROUTER_EXTERN_DECOMPOSITIONS)
  target_link_libraries(${target} PRIVATE mpi_router_decompositions)
endfunction()

# Compiling takes longest: except in full tests, a program is optimised little, and nothing in it is inlined by force.
function(mpirouter_compile_quickly target)
  if(NOT MSVC AND NOT MPIROUTER_FULL_TESTS AND NOT MPIROUTER_SANITIZE)
    target_compile_options(${target} PRIVATE -O1)
    target_compile_definitions(${target} PRIVATE MPIROUTER_ALWAYS_INLINE=inline)
  endif()
endfunction()

# Except in full tests, not at all: what reads files or runs programs, and computes little.
function(mpirouter_compile_unoptimised target)
  if(NOT MSVC AND NOT MPIROUTER_FULL_TESTS)
    target_compile_options(${target} PRIVATE -O0)
  endif()
endfunction()

# Sets <variable> to the mpi_router:: components and packages among <libraries> that this build lacks.
function(mpirouter_missing_targets variable)
  set(missing "")
  foreach(library IN LISTS ARGN)
    if(library MATCHES "::" AND NOT TARGET ${library})
      list(APPEND missing ${library})
    endif()
  endforeach()
  set(${variable} "${missing}" PARENT_SCOPE)
endfunction()

# mpirouter_add_executable(<name> SOURCES <file>… [LIBRARIES <target>…] [OWN_DECOMPOSITIONS] [MORE]): an executable linked to the
# core.
# OWN_DECOMPOSITIONS: Eigen's decompositions are compiled with its own flags, such as -march, which must not be mixed.
# With MPIROUTER_UNITY_BUILD its sources are one translation unit: most of the time goes into what all of them include.
# Where a library is not to be had there is no executable, and a line says so. MORE: one that is there is given more sources.
function(mpirouter_add_executable name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "OWN_DECOMPOSITIONS;MORE" "" "SOURCES;LIBRARIES")
  mpirouter_missing_targets(missing ${arg_LIBRARIES})
  if(missing)
    message(STATUS "mpi_router: ${name} is left out, it needs ${missing}")
    return()
  endif()
  if(NOT TARGET ${name} OR NOT arg_MORE) # of a second one of a name CMake says where the first is
    add_executable(${name})
  endif()
  target_sources(${name} PRIVATE ${arg_SOURCES})
  set_target_properties(${name} PROPERTIES UNITY_BUILD ${MPIROUTER_UNITY_BUILD} UNITY_BUILD_BATCH_SIZE 0)
  target_link_libraries(${name} PRIVATE mpi_router::mpi_router ${arg_LIBRARIES})
  if(mpi_router::verify IN_LIST arg_LIBRARIES AND NOT arg_OWN_DECOMPOSITIONS)
    mpirouter_link_decompositions(${name})
  endif()
  mpirouter_set_options(${name})
endfunction()

# Adds the folders beside this CMakeLists.txt, each one program with its own.
function(mpirouter_add_programs)
  if(MPIROUTER_SANITIZE)
    add_compile_options(-O1) # they decompose matrices: unoptimised, the tests would wait for minutes
  endif()
  if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang") # finds what std::stable_sort of libstdc++ 12 uses deprecated
    add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Wno-deprecated-declarations>)
  endif()
  file(GLOB folders CONFIGURE_DEPENDS RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} */CMakeLists.txt)
  foreach(folder IN LISTS folders)
    get_filename_component(folder ${folder} DIRECTORY)
    add_subdirectory(${folder})
  endforeach()
endfunction()

# mpirouter_add_test(<name> SOURCES <file>… [LIBRARIES <target>…] [ARGUMENTS <argument>…] [GROUP <program>] [FULL]
#                    [SANITIZED_IN_FULL] [HEAVY] [UNOPTIMISED] [DATA]):
# a doctest executable (main is given) run by ctest. The working directory of the run is the test's source folder.
# GROUP: with MPIROUTER_UNITY_BUILD the tests of a group are one program of one translation unit, for what all of them include
# takes most of the time; each is still an entry of ctest of its own, which runs the test cases of its sources. What lies in such
# a source lies in a namespace named after it, so that nothing leaks into the next.
# FULL: a slow sweep, there only with MPIROUTER_FULL_TESTS; SANITIZED_IN_FULL: under sanitizers only with them. Compiled
# quickly, except a HEAVY one, which would run longer than that saves; except in full tests, UNOPTIMISED is what reads files or
# runs programs, and computes little. DATA: MPIROUTER_TEST_DATA is the folder tests/data; this path would keep clones from
# sharing the compiler's cache. A test whose libraries are not to be had is listed by ctest as disabled.
function(mpirouter_add_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "FULL;HEAVY;SANITIZED_IN_FULL;UNOPTIMISED;DATA" "GROUP" "SOURCES;LIBRARIES;ARGUMENTS")
  if(arg_UNPARSED_ARGUMENTS OR (arg_GROUP AND arg_HEAVY))
    message(FATAL_ERROR "mpirouter_add_test(${name}): ${arg_UNPARSED_ARGUMENTS}, or a HEAVY one in the group '${arg_GROUP}'")
  endif()
  if(NOT MPIROUTER_FULL_TESTS AND (arg_FULL OR (arg_SANITIZED_IN_FULL AND MPIROUTER_SANITIZE)))
    return()
  endif()
  mpirouter_missing_targets(missing ${arg_LIBRARIES})
  if(missing)
    message(STATUS "mpi_router: ${name} is left out, it needs ${missing}")
    add_test(NAME ${name} COMMAND ${CMAKE_COMMAND} -E false)
    set_tests_properties(${name} PROPERTIES DISABLED TRUE)
    return()
  endif()
  set(program ${name})
  set(more "")
  if(arg_GROUP AND MPIROUTER_UNITY_BUILD)
    set(program ${arg_GROUP})
    set(more MORE)
    add_custom_target(${name} DEPENDS ${program}) # a test is built by its name
    list(TRANSFORM arg_SOURCES REPLACE "^(.*/)?([^/]+)$" "*/\\2" OUTPUT_VARIABLE files)
    list(JOIN files "," files)
    list(APPEND arg_ARGUMENTS --source-file=${files})
  endif()
  mpirouter_add_executable(${program} SOURCES ${arg_SOURCES} LIBRARIES ${arg_LIBRARIES} mpirouter_test_support ${more})
  if(NOT arg_HEAVY)
    mpirouter_compile_quickly(${program})
  endif()
  if(arg_UNOPTIMISED)
    mpirouter_compile_unoptimised(${program})
  endif()
  if(arg_DATA)
    target_compile_definitions(${program} PRIVATE MPIROUTER_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/data")
  endif()
  add_test(
    NAME ${name}
    COMMAND ${program} ${arg_ARGUMENTS}
    WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR})
  if(arg_FULL)
    set_tests_properties(${name} PROPERTIES LABELS full)
  endif()
endfunction()
