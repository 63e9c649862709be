# The kernels of spills.cu, compiled for sm_80, keep their tiles in registers: a few bytes of local memory at most, for
# what they once spilled was more than the weights they read.
set(most 32) # bytes of a thread
execute_process(
  COMMAND ${NVCC} -std=c++20 -O3 -I${INCLUDE_DIR} -gencode arch=compute_80,code=sm_80 -Xptxas -v -cubin -o ${OUTPUT}
          ${SOURCE}
  RESULT_VARIABLE code
  OUTPUT_VARIABLE report
  ERROR_VARIABLE report)
if(NOT code EQUAL 0)
  message(FATAL_ERROR "${report}")
endif()
string(REGEX MATCHALL "properties for [^\n]*row_step_kernel[^\n]*\n[^\n]*bytes spill stores" kernels "${report}")
list(LENGTH kernels count)
if(NOT count EQUAL 9)
  message(FATAL_ERROR "${count} kernels in place of 9:\n${report}")
endif()
foreach(kernel IN LISTS kernels)
  string(REGEX MATCH "([0-9]+) bytes spill stores" spilled "${kernel}")
  if(CMAKE_MATCH_1 GREATER most)
    message(FATAL_ERROR "${kernel}")
  endif()
endforeach()
message(STATUS "${count} kernels, none spills more than ${most} bytes")
