# A request for another major version is refused, as Eigen's own files do.
set(PACKAGE_VERSION 5.0.1)
if(NOT PACKAGE_FIND_VERSION OR PACKAGE_FIND_VERSION_MAJOR EQUAL 5)
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
endif()
