# mpi_router::c, the library behind mpi_router/c/mpi_router.h: shared, and static as mpi_router::c_static. It has the
# kernels of mpi_router::dispatch inside, Eigen for certificates, and with MPIROUTER_CUDA the kernels for GPUs.
set(MPIROUTER_C_FLAGS "" CACHE STRING "Flags for the sources of mpi_router::c, after those of CMAKE_BUILD_TYPE")
mark_as_advanced(MPIROUTER_C_FLAGS)
mpirouter_require(Eigen3 Eigen3::Eigen)
if(MSVC)
  message(WARNING "mpi_router: mpi_router::c exports its functions by attributes of GCC and clang, so there is none with MSVC")
  return()
endif()
if(NOT TARGET mpi_router_dispatch OR NOT TARGET Eigen3::Eigen)
  message(WARNING "mpi_router: no mpi_router::dispatch or no Eigen, so no mpi_router::c, which MPIROUTER_C asks for")
  return()
endif()

file(GLOB mpirouter_c_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/c/*.cpp)
add_library(mpi_router_c_objects OBJECT ${mpirouter_c_sources})
target_link_libraries(mpi_router_c_objects PRIVATE mpi_router::mpi_router mpi_router::verify)
# Eigen under a name of its own: a C++ program may link the archive beside an Eigen that aligns otherwise.
target_compile_definitions(mpi_router_c_objects PRIVATE Eigen=mpi_router_c_eigen)
# The calls on GPUs, or what says that there are none.
if(MPIROUTER_CUDA)
  find_package(CUDAToolkit REQUIRED)
  file(GLOB mpirouter_c_cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/c/cuda/*.cpp
       ${PROJECT_SOURCE_DIR}/cmake/c/cuda/*.cu)
  target_sources(mpi_router_c_objects PRIVATE ${mpirouter_c_cuda_sources})
  target_link_libraries(mpi_router_c_objects PRIVATE mpi_router::cuda)
  target_compile_definitions(mpi_router_c_objects PRIVATE MPIROUTER_C_CUDA)
  set_target_properties(mpi_router_c_objects PROPERTIES CUDA_VISIBILITY_PRESET hidden)
endif()
set_target_properties(mpi_router_c_objects PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden
                                                      VISIBILITY_INLINES_HIDDEN ON)
mpirouter_set_options(mpi_router_c_objects)
target_compile_options(mpi_router_c_objects PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${MPIROUTER_C_FLAGS}>")

# mpirouter_add_c(<target> <name> SHARED|STATIC)
function(mpirouter_add_c target name kind)
  add_library(${target} ${kind} $<TARGET_OBJECTS:mpi_router_c_objects>)
  add_library(mpi_router::${name} ALIAS ${target})
  set_target_properties(${target} PROPERTIES OUTPUT_NAME mpi_router_c EXPORT_NAME ${name} LINKER_LANGUAGE CXX)
  target_include_directories(
    ${target} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
                     $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
endfunction()

mpirouter_add_c(mpi_router_c c SHARED)
target_link_libraries(mpi_router_c PRIVATE mpi_router_dispatch)
if(MPIROUTER_CUDA)
  target_link_libraries(mpi_router_c PRIVATE CUDA::cudart_static)
endif()
# Before 1.0 every minor version may break its callers.
set_target_properties(mpi_router_c PROPERTIES VERSION ${PROJECT_VERSION}
                                              SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
if(CMAKE_SYSTEM_NAME STREQUAL "Linux") # templates of the standard library are visible whatever the compiler is told
  set(mpirouter_c_symbols ${PROJECT_SOURCE_DIR}/cmake/c/symbols.map)
  target_link_options(mpi_router_c PRIVATE -Wl,--version-script=${mpirouter_c_symbols})
  set_target_properties(mpi_router_c PROPERTIES LINK_DEPENDS ${mpirouter_c_symbols})
endif()
if(MPIROUTER_SANITIZE)
  target_link_options(mpi_router_c PUBLIC -fsanitize=${MPIROUTER_SANITIZE})
endif()

# The archive has the kernels inside, and tells C programs which libraries of C++ it needs.
mpirouter_add_c(mpi_router_c_static c_static STATIC)
target_sources(mpi_router_c_static PRIVATE $<TARGET_OBJECTS:mpi_router_dispatch>)
foreach(set IN LISTS mpirouter_dispatch_sets)
  target_sources(mpi_router_c_static PRIVATE $<TARGET_OBJECTS:mpi_router_dispatch_${set}>)
endforeach()
set(mpirouter_cxx_libraries ${CMAKE_CXX_IMPLICIT_LINK_LIBRARIES})
list(FILTER mpirouter_cxx_libraries INCLUDE REGEX "^(stdc\\+\\+|c\\+\\+|c\\+\\+abi|m)$")
target_link_libraries(mpi_router_c_static INTERFACE ${mpirouter_cxx_libraries})
if(MPIROUTER_CUDA)
  target_link_libraries(mpi_router_c_static INTERFACE CUDA::cudart_static)
endif()
