# Stands for the package config of that version of Eigen; only the finding is tested with it.
if(NOT TARGET Eigen3::Eigen)
  add_library(Eigen3::Eigen INTERFACE IMPORTED)
endif()
