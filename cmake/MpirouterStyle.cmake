# ctest entries for formatting and clang-tidy, with the versions that the project's files are written for.
find_program(MPIROUTER_CLANG_FORMAT NAMES clang-format-19)
find_program(MPIROUTER_CLANG_TIDY NAMES clang-tidy-19)
mark_as_advanced(MPIROUTER_CLANG_FORMAT MPIROUTER_CLANG_TIDY)

file(GLOB_RECURSE mpirouter_sources CONFIGURE_DEPENDS
     include/mpi_router/*.hpp include/mpi_router/*.cuh tests/*.hpp tests/*.cpp tests/*.cu tools/*.hpp
     tools/*.cpp examples/*.hpp examples/*.cpp examples/*.cu bench/*.hpp bench/*.cpp bench/*.cu cmake/*.cpp cmake/*.hpp)
if(MPIROUTER_CLANG_FORMAT)
  add_test(NAME style.format COMMAND ${MPIROUTER_CLANG_FORMAT} --dry-run -Werror --ferror-limit=1 ${mpirouter_sources})
else()
  add_test(NAME style.format COMMAND ${CMAKE_COMMAND} -E false)
  set_tests_properties(style.format PROPERTIES DISABLED TRUE) # no clang-format-19
endif()

# One translation unit with every public header; all others only on request, for they take minutes.
set(mpirouter_tidy_lines "")
file(GLOB_RECURSE mpirouter_headers CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/include include/mpi_router/*.hpp)
list(FILTER mpirouter_headers EXCLUDE REGEX "^mpi_router/(torch/|distributed/mpi\\.hpp)")
if(NOT TARGET mpi_router::ggml) # its headers include ggml's
  list(FILTER mpirouter_headers EXCLUDE REGEX "^mpi_router/ggml/")
endif()
foreach(header IN LISTS mpirouter_headers)
  string(APPEND mpirouter_tidy_lines "#include <${header}>\n")
endforeach()
set(mpirouter_tidy_source ${PROJECT_BINARY_DIR}/every_header.cpp)
file(CONFIGURE OUTPUT ${mpirouter_tidy_source} CONTENT "@mpirouter_tidy_lines@" @ONLY)
add_library(mpirouter_every_header OBJECT EXCLUDE_FROM_ALL ${mpirouter_tidy_source})
if(NOT MPIROUTER_FULL_TESTS) # Eigen's templates, made for its decompositions, take a third of the time
  target_compile_definitions(mpirouter_every_header PRIVATE MPIROUTER_EXTERN_DECOMPOSITIONS)
endif()
foreach(component IN LISTS mpirouter_components)
  target_link_libraries(mpirouter_every_header PRIVATE mpi_router::${component})
endforeach()

# clang-tidy reads the flags from the compilation database; those that clang does not know are g++'s own.
set(mpirouter_tidy_command
    ${MPIROUTER_CLANG_TIDY} --quiet --config-file=${PROJECT_SOURCE_DIR}/.clang-tidy -p ${PROJECT_BINARY_DIR}
    --extra-arg=-Wno-unknown-warning-option
    --extra-arg=-Wno-ignored-optimization-argument)
if(MPIROUTER_CLANG_TIDY AND CMAKE_EXPORT_COMPILE_COMMANDS)
  add_test(NAME style.tidy COMMAND ${mpirouter_tidy_command} ${mpirouter_tidy_source})
  set_tests_properties(style.tidy PROPERTIES COST 90) # begun early: the last one would leave the other cores idle
  if(MPIROUTER_FULL_TESTS)
    file(GLOB_RECURSE mpirouter_tidy_programs CONFIGURE_DEPENDS tests/*.cpp tools/*.cpp examples/*.cpp bench/*.cpp)
    list(FILTER mpirouter_tidy_programs EXCLUDE REGEX "tests/packaging/")
    if(NOT TARGET mpi_router::ggml)
      list(FILTER mpirouter_tidy_programs EXCLUDE REGEX "(tests/ggml|examples/ggml_router)/")
    endif()
    foreach(source IN LISTS mpirouter_tidy_programs)
      file(RELATIVE_PATH name ${PROJECT_SOURCE_DIR} ${source})
      add_test(NAME style.tidy.${name} COMMAND ${mpirouter_tidy_command} ${source})
      set_tests_properties(style.tidy.${name} PROPERTIES LABELS full)
    endforeach()
  endif()
else()
  add_test(NAME style.tidy COMMAND ${CMAKE_COMMAND} -E false)
  set_tests_properties(style.tidy PROPERTIES DISABLED TRUE) # no clang-tidy-19
endif()
