# mpi_router::torch, the library behind mpi_router/torch/router.hpp: tensors in and out, over mpi_router::c. Shared alone: it
# registers operators when it is loaded, which a linker would leave out of an archive.
if(NOT TARGET mpi_router_c)
  message(WARNING "mpi_router: no mpi_router::c, so no mpi_router::torch, which MPIROUTER_TORCH asks for")
  return()
endif()
mpirouter_find(Torch torch)
if(NOT TARGET torch)
  message(STATUS "mpi_router: no libtorch, so no mpi_router::torch: install libtorch-dev, or give the folder of "
                 "TorchConfig.cmake as Torch_DIR (of PyTorch in Python: torch.utils.cmake_prefix_path)")
  return()
endif()

add_library(mpi_router_torch SHARED cmake/torch/operators.cpp)
add_library(mpi_router::torch ALIAS mpi_router_torch)
# Of the standard that libtorch's headers are written in: clang does not take those of 1.13 as C++20.
target_compile_features(mpi_router_torch PRIVATE cxx_std_17)
target_link_libraries(mpi_router_torch PUBLIC mpi_router_c torch)
mpirouter_set_options(mpi_router_torch)
set_target_properties(mpi_router_torch PROPERTIES INSTALL_RPATH "$ORIGIN" VERSION ${PROJECT_VERSION}
                                                  SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
# at::parallel_for is a template of libtorch's that starts threads only where its caller is compiled for OpenMP.
if(TARGET OpenMP::OpenMP_CXX)
  target_link_libraries(mpi_router_torch PRIVATE OpenMP::OpenMP_CXX)
else()
  message(STATUS "mpi_router: no OpenMP, so mpi_router::torch runs on one thread")
endif()
# GPUs, where both libraries were built for them: the current stream is asked of the CUDA part of libtorch.
if(MPIROUTER_CUDA AND TARGET c10_cuda AND TARGET CUDA::cudart)
  target_compile_definitions(mpi_router_torch PRIVATE MPIROUTER_TORCH_CUDA)
  target_link_libraries(mpi_router_torch PRIVATE c10_cuda CUDA::cudart)
else()
  message(STATUS "mpi_router: mpi_router::torch is built without GPUs")
endif()
