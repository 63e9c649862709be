# Builds the API reference: no warnings, and every name is documented except plain members of documented classes.
cmake_minimum_required(VERSION 3.22)
file(READ ${SOURCE_DIR}/docs/Doxyfile configuration)
string(APPEND configuration "\nOUTPUT_DIRECTORY = ${OUTPUT_DIR}\nPROJECT_NUMBER = ${VERSION}\n")

function(run_doxygen name extra)
  file(WRITE ${OUTPUT_DIR}/${name}.doxyfile "${configuration}${extra}")
  execute_process(
    COMMAND ${DOXYGEN} ${OUTPUT_DIR}/${name}.doxyfile
    WORKING_DIRECTORY ${SOURCE_DIR}
    RESULT_VARIABLE result
    ERROR_VARIABLE output
    OUTPUT_VARIABLE output)
  set(result ${result} PARENT_SCOPE)
  set(output "${output}" PARENT_SCOPE)
endfunction()

run_doxygen(reference "")
if(NOT result EQUAL 0 OR output)
  message(FATAL_ERROR "doxygen: ${result}\n${output}")
endif()
if(NOT EXISTS ${OUTPUT_DIR}/html/index.html)
  message(FATAL_ERROR "doxygen wrote no reference")
endif()

run_doxygen(documented "WARN_IF_UNDOCUMENTED = YES\nWARN_AS_ERROR = NO\nGENERATE_HTML = NO\nGENERATE_XML = YES\n")
string(REGEX MATCHALL "[^\n]*is not documented" undocumented "${output}")
list(FILTER undocumented EXCLUDE REGEX "Member .* of (class|struct) ")
list(FILTER undocumented EXCLUDE REGEX "Compound [a-z_0-9:]+<") # a specialisation of a documented template
# Macros, deduction guides, and what its name says.
list(FILTER undocumented EXCLUDE REGEX "Member (to_string|MPI[A-Z_0-9]+)\\(|Member MPI[A-Z_0-9]+ |\\) -> ")
if(undocumented)
  list(JOIN undocumented "\n" undocumented)
  message(FATAL_ERROR "${undocumented}")
endif()
