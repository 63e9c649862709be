# The header-only targets mpi_router::mpi_router, mpi_router::eigen, …: one per group of dependencies.
set(mpirouter_components "" CACHE INTERNAL "Components that were built, in order")

# mpirouter_add_component(<name> [<package> <target>]): headers that need <target> of <package>. Where the
# package is not to be had, the component does not exist, and a line says so.
function(mpirouter_add_component name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "")
  list(LENGTH arg_UNPARSED_ARGUMENTS has_dependency)
  if(has_dependency)
    list(GET arg_UNPARSED_ARGUMENTS 0 package)
    list(GET arg_UNPARSED_ARGUMENTS 1 dependency)
    mpirouter_require(${package} ${dependency})
    if(NOT ${package}_FOUND OR NOT TARGET ${dependency})
      message(STATUS "mpi_router: no ${package}, so no mpi_router::${name}")
      return()
    endif()
  endif()

  if(name STREQUAL "mpi_router")
    set(target mpi_router)
  else()
    set(target mpi_router_${name})
  endif()
  add_library(${target} INTERFACE)
  add_library(mpi_router::${name} ALIAS ${target})
  if(name STREQUAL "mpi_router")
    target_compile_features(${target} INTERFACE cxx_std_20)
    target_include_directories(
      ${target} INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
                          $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  else()
    target_link_libraries(${target} INTERFACE mpi_router ${dependency})
  endif()
  list(APPEND mpirouter_components ${name})
  set(mpirouter_components "${mpirouter_components}" CACHE INTERNAL "")
endfunction()
