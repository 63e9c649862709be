# cmake -D PROGRAM=… -D EXPECTED=… -P prints.cmake: the program ends well and prints what the page says.
execute_process(
  COMMAND ${PROGRAM}
  OUTPUT_VARIABLE printed
  RESULT_VARIABLE status)
file(READ ${EXPECTED} expected)
if(NOT status EQUAL 0 OR NOT printed STREQUAL expected)
  message(FATAL_ERROR "exit status ${status}; printed:\n${printed}\nThe page says:\n${expected}")
endif()
