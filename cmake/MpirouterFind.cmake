# What the components need, and how it is found. The installed package config includes this file too, so that a
# component means the same to those who build the project and to those who use it.

# The header-only components beside the core, and for each the package and the target that it needs.
set(mpirouter_header_components eigen simd io verify openmp tbb cuda distributed mpi ggml)
set(mpirouter_needs_eigen Eigen3 Eigen3::Eigen)
set(mpirouter_needs_simd xsimd xsimd)
set(mpirouter_needs_io nlohmann_json nlohmann_json::nlohmann_json)
set(mpirouter_needs_verify Eigen3 Eigen3::Eigen)
set(mpirouter_needs_openmp OpenMP OpenMP::OpenMP_CXX)
set(mpirouter_needs_tbb TBB TBB::tbb)
set(mpirouter_needs_cuda CUDAToolkit CUDA::cudart)
set(mpirouter_needs_distributed Threads Threads::Threads) # loopback.hpp alone
set(mpirouter_needs_mpi MPI MPI::MPI_CXX)
set(mpirouter_needs_ggml ggml ggml::ggml)

# Finds <package>, unless its <target> is there already, and sets <package>_FOUND.
macro(mpirouter_find package target)
  if(TARGET ${target})
    set(${package}_FOUND TRUE)
  elseif("${package}" STREQUAL "MPI")
    find_package(MPI QUIET COMPONENTS CXX)
  else()
    find_package(${package} QUIET)
  endif()
  # Eigen is found without a version and then checked: the config file of Eigen 5 refuses a request for 3.4.
  if("${package}" STREQUAL "Eigen3" AND Eigen3_VERSION VERSION_LESS 3.4 AND Eigen3_VERSION)
    message(STATUS "mpi_router: Eigen ${Eigen3_VERSION} is too old, 3.4 or newer is needed")
    set(Eigen3_FOUND FALSE)
  endif()
  # ggml's backends ask for a C compiler of their users, which a project in C++ alone has not.
  if("${package}" STREQUAL "ggml" AND TARGET ggml::all AND NOT CMAKE_C_COMPILER_LOADED)
    get_target_property(mpirouter_ggml_backends ggml::all INTERFACE_LINK_LIBRARIES)
    if(mpirouter_ggml_backends)
      set_property(TARGET ${mpirouter_ggml_backends} PROPERTY INTERFACE_COMPILE_FEATURES "")
    endif()
  endif()
  # Debian 12's xsimd asks to be linked with xtl, which it does not use unless told to, and does not install.
  if("${package}" STREQUAL "xsimd" AND TARGET xsimd AND NOT TARGET xtl)
    get_target_property(mpirouter_xsimd_links xsimd INTERFACE_LINK_LIBRARIES)
    if("${mpirouter_xsimd_links}" STREQUAL "xtl")
      set_property(TARGET xsimd PROPERTY INTERFACE_LINK_LIBRARIES "")
    endif()
  endif()
endmacro()
