# PROGRAM MISTAKE must abort, and name what did not fit.
cmake_minimum_required(VERSION 3.22)
set(expected_shapes "mpi_router: [^\n]*3[^\n]*2")
set(expected_radius "mpi_router: [^\n]*radius")
set(expected_null "mpi_router: vector_view: null data for size 2")
execute_process(
  COMMAND ${PROGRAM} ${MISTAKE}
  RESULT_VARIABLE result
  ERROR_VARIABLE error)
message("${result}: ${error}")
if(NOT result MATCHES "abort")
  message(FATAL_ERROR "should have aborted")
endif()
if(NOT error MATCHES "${expected_${MISTAKE}}")
  message(FATAL_ERROR "the message does not match \"${expected_${MISTAKE}}\"")
endif()
