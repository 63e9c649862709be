# install(): headers, one export file per component, and a package config that finds what each one needs.
include(CMakePackageConfigHelpers)

set(mpirouter_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/mpi_router)
install(DIRECTORY include/mpi_router DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(mpirouter_component_lines "")
foreach(name IN LISTS mpirouter_components)
  if(name STREQUAL "mpi_router")
    set(target mpi_router)
  else()
    set(target mpi_router_${name})
    get_target_property(dependency ${target} MPIROUTER_DEPENDENCY)
    string(JOIN " " dependency ${dependency})
    string(APPEND mpirouter_component_lines "mpirouter_add_imported_component(${name} ${dependency})\n")
  endif()
  install(TARGETS ${target} EXPORT mpi_router-${name})
  install(
    EXPORT mpi_router-${name}
    NAMESPACE mpi_router::
    DESTINATION ${mpirouter_package_dir})
endforeach()

configure_package_config_file(cmake/mpi_routerConfig.cmake.in mpi_routerConfig.cmake
                              INSTALL_DESTINATION ${mpirouter_package_dir})
# Before 1.0 every minor version may break its callers.
write_basic_package_version_file(
  mpi_routerConfigVersion.cmake
  COMPATIBILITY SameMinorVersion
  ARCH_INDEPENDENT)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/mpi_routerConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/mpi_routerConfigVersion.cmake cmake/MpirouterFind.cmake
        DESTINATION ${mpirouter_package_dir})
