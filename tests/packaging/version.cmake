# The version of version.hpp is the one that CITATION.cff states.
cmake_minimum_required(VERSION 3.22)
file(READ ${SOURCE_DIR}/CITATION.cff citation)
if(NOT citation MATCHES "\nversion: ${VERSION}\n")
  message(FATAL_ERROR "CITATION.cff does not state version ${VERSION}")
endif()
