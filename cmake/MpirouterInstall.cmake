# install(): the headers, the core's target, mpi_router::dispatch, ::c and ::torch where they were built, and a package config. That makes the
# header-only components where they are used, from what is found there: what this machine has does not matter.
include(CMakePackageConfigHelpers)

set(mpirouter_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/mpi_router)
install(DIRECTORY include/mpi_router DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} PATTERN README.md EXCLUDE)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

# mpirouter_install_target(<target> <name> [<target>…]): installed as mpi_router::<name>, with an export file of its own,
# in which more targets may be.
function(mpirouter_install_target target name)
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name})
  install(TARGETS ${target} ${ARGN} EXPORT mpi_router-${name})
  install(
    EXPORT mpi_router-${name}
    NAMESPACE mpi_router::
    DESTINATION ${mpirouter_package_dir})
endfunction()

mpirouter_install_target(mpi_router mpi_router)
set(mpirouter_any_architecture ARCH_INDEPENDENT)
if(TARGET mpi_router_dispatch)
  mpirouter_install_target(mpi_router_dispatch dispatch)
  set(mpirouter_any_architecture "")
endif()
if(TARGET mpi_router_c)
  mpirouter_install_target(mpi_router_c c mpi_router_c_static)
  install(FILES python/mpi_router.py DESTINATION ${CMAKE_INSTALL_DATADIR}/mpi_router/python)
  install(DIRECTORY python/mpi_router_torch DESTINATION ${CMAKE_INSTALL_DATADIR}/mpi_router/python FILES_MATCHING PATTERN "*.py")
  set(mpirouter_any_architecture "")
endif()
if(TARGET mpi_router_torch)
  mpirouter_install_target(mpi_router_torch torch)
endif()

configure_package_config_file(cmake/mpi_routerConfig.cmake.in mpi_routerConfig.cmake
                              INSTALL_DESTINATION ${mpirouter_package_dir})
# Before 1.0 every minor version may break its callers.
write_basic_package_version_file(
  mpi_routerConfigVersion.cmake
  COMPATIBILITY SameMinorVersion
  ${mpirouter_any_architecture})
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/mpi_routerConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/mpi_routerConfigVersion.cmake cmake/MpirouterFind.cmake
        DESTINATION ${mpirouter_package_dir})
