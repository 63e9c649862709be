# The kernels of spills.cu, compiled for sm_80 and sm_90a, keep what they have in registers: a few bytes of local memory
# at most, for what they once spilled was more than the weights they read.
set(most 32) # bytes of a thread
foreach(arch 80 90a)
  if(arch STREQUAL 80)
    set(by threads)
  else()
    set(by tma)
  endif()
  execute_process(
    COMMAND ${NVCC} -std=c++20 -O3 -I${INCLUDE_DIR} -DBY=${by} -gencode arch=compute_${arch},code=sm_${arch} -Xptxas -v
            -cubin -o ${OUTPUT} ${SOURCE}
    RESULT_VARIABLE code
    OUTPUT_VARIABLE report
    ERROR_VARIABLE report)
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "${report}")
  endif()
  string(REGEX MATCHALL "properties for [^\n]*row_step_kernel[^\n]*\n[^\n]*bytes spill stores" kernels "${report}")
  list(LENGTH kernels count)
  if(NOT count EQUAL 10)
    message(FATAL_ERROR "${count} kernels in place of 10:\n${report}")
  endif()
  foreach(kernel IN LISTS kernels)
    string(REGEX MATCH "([0-9]+) bytes spill stores" spilled "${kernel}")
    if(CMAKE_MATCH_1 GREATER most)
      message(FATAL_ERROR "${kernel}")
    endif()
  endforeach()
  message(STATUS "sm_${arch}: ${count} kernels, none spills more than ${most} bytes")
endforeach()
