# Every public header, by itself and as C++17, ends with the one error that says what to ask the compiler for.
cmake_minimum_required(VERSION 3.22)
set(ENV{LC_ALL} C)
file(GLOB_RECURSE headers RELATIVE ${INCLUDE_DIR} ${INCLUDE_DIR}/mpi_router/*.hpp ${INCLUDE_DIR}/mpi_router/*.cuh)
# The version is three macros, of any standard; programs for libtorch are of C++17.
list(FILTER headers EXCLUDE REGEX "/detail/|core/version.hpp|mpi_router/torch/")
if(CUDA_INCLUDE_DIR)
  list(APPEND INCLUDE_DIRS -isystem ${CUDA_INCLUDE_DIR})
else()
  list(FILTER headers EXCLUDE REGEX "[.]cuh$")
endif()
list(LENGTH headers count)
if(count EQUAL 0)
  message(FATAL_ERROR "no headers in ${INCLUDE_DIR}")
endif()
foreach(header IN LISTS headers)
  execute_process(
    COMMAND ${COMPILER} -x c++ -std=c++17 -fsyntax-only -I${INCLUDE_DIR} ${INCLUDE_DIRS} -include ${header} /dev/null
    RESULT_VARIABLE result ERROR_VARIABLE error)
  string(REGEX MATCHALL "[^\n]*error: [^\n]*" errors "${error}")
  # The second is the file that is not there, which ends the compilation.
  if(result EQUAL 0 OR NOT errors MATCHES "^[^;]*config.hpp[^;]*needs C[+][+]20: compile with -std=c[+][+]20[^;]*;[^;]*needs C[+][+]20[^;]*$")
    message(SEND_ERROR "${header}:\n${error}")
  endif()
endforeach()
