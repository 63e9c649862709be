# How a third-party package is found. The installed package config includes this file too, so that a
# component means the same to those who build the project and to those who use it.

# Finds <package> and sets <package>_FOUND. Eigen is found without a version and then checked: the config
# file of Eigen 5 refuses a request for 3.4.
macro(mpirouter_find package)
  find_package(${package} QUIET)
  if("${package}" STREQUAL "Eigen3" AND Eigen3_FOUND AND Eigen3_VERSION VERSION_LESS 3.4)
    message(STATUS "mpi_router: Eigen ${Eigen3_VERSION} is too old, 3.4 or newer is needed")
    set(Eigen3_FOUND FALSE)
  endif()
endmacro()
