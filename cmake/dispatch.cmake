# mpi_router::dispatch: the kernels of backend/simd.hpp and backend/packed.hpp compiled for several instruction sets, and the choice between them
# at run time.
mpirouter_require(xsimd xsimd)
if(NOT TARGET xsimd)
  message(STATUS "mpi_router: no xsimd, so no mpi_router::dispatch")
  return()
endif()

if(MINGW AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU") # it misaligns AVX variables on the stack (GCC bug 54412)
  message(STATUS "mpi_router: no mpi_router::dispatch by gcc for Windows")
  return()
endif()

set(mpirouter_dispatch_sets baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND mpirouter_dispatch_sets x86_64_v3 x86_64_v4)
endif()

add_library(mpi_router_dispatch STATIC cmake/dispatch/select.cpp cmake/dispatch/select_packed.cpp)
add_library(mpi_router::dispatch ALIAS mpi_router_dispatch)
set_target_properties(mpi_router_dispatch PROPERTIES EXPORT_NAME dispatch POSITION_INDEPENDENT_CODE ON)
target_link_libraries(mpi_router_dispatch PUBLIC mpi_router::mpi_router)
mpirouter_set_options(mpi_router_dispatch)

foreach(set IN LISTS mpirouter_dispatch_sets)
  set(target mpi_router_dispatch_${set})
  add_library(${target} OBJECT cmake/dispatch/kernels.cpp cmake/dispatch/packed.cpp)
  target_link_libraries(${target} PRIVATE mpi_router::mpi_router xsimd)
  target_compile_definitions(${target} PRIVATE MPIROUTER_DISPATCH_TABLES=${set}_tables
                                               MPIROUTER_DISPATCH_PACKED_TABLES=${set}_packed_tables)
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  mpirouter_set_options(${target})
  # Always optimised: what is not inlined would be a function that other translation units may share.
  target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:GNU,Clang,AppleClang>:-O3>)
  if(set MATCHES "x86_64")
    string(REPLACE "_v" "-v" march ${set})
    string(REPLACE "x86_64" "x86-64" march ${march})
    target_compile_options(${target} PRIVATE -march=${march})
  endif()
  target_sources(mpi_router_dispatch PRIVATE $<TARGET_OBJECTS:${target}>)
endforeach()
