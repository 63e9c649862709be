# install(): the headers, the core's target, mpi_router::dispatch, ::c and ::torch where they were built, a package
# config, and files for pkg-config. The config makes the header-only components where they are used, from what is found there: what this machine
# has does not matter.
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

# mpirouter_install_pkgconfig(<name> <folder> DESCRIPTION <words> [REQUIRES <packages>] [LIBS <flags>] [PRIVATE <flags>]):
# <name>.pc, which may be moved together with what it describes.
function(mpirouter_install_pkgconfig name folder)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "DESCRIPTION;REQUIRES;LIBS;PRIVATE" "")
  if(IS_ABSOLUTE ${folder})
    set(mpirouter_pc_prefix ${CMAKE_INSTALL_PREFIX})
  else()
    file(RELATIVE_PATH mpirouter_pc_prefix /${folder}/pkgconfig /)
    string(REGEX REPLACE "/$" "" mpirouter_pc_prefix ${mpirouter_pc_prefix})
    string(PREPEND mpirouter_pc_prefix "\${pcfiledir}/")
  endif()
  foreach(dir IN ITEMS includedir libdir) # an absolute one stays what it is
    string(TOUPPER ${dir} upper)
    set(mpirouter_pc_${dir} "\${prefix}")
    cmake_path(APPEND mpirouter_pc_${dir} "${CMAKE_INSTALL_${upper}}")
  endforeach()
  if(arg_LIBS) # headers alone are for any architecture
    string(PREPEND mpirouter_pc_libdir "libdir=")
  else()
    set(mpirouter_pc_libdir "")
  endif()
  configure_file(${PROJECT_SOURCE_DIR}/cmake/mpi_router.pc.in ${PROJECT_BINARY_DIR}/${name}.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/${name}.pc DESTINATION ${folder}/pkgconfig)
endfunction()

mpirouter_install_target(mpi_router mpi_router)
mpirouter_install_pkgconfig(mpi_router ${CMAKE_INSTALL_DATADIR} DESCRIPTION "${PROJECT_DESCRIPTION}")
set(mpirouter_any_architecture ARCH_INDEPENDENT)
if(TARGET mpi_router_dispatch)
  mpirouter_install_target(mpi_router_dispatch dispatch)
  mpirouter_install_pkgconfig(
    mpi_router_dispatch ${CMAKE_INSTALL_LIBDIR}
    DESCRIPTION "Kernels of mpi_router, chosen for the processor at run time"
    REQUIRES "mpi_router = ${PROJECT_VERSION}"
    LIBS "-L\${libdir} -lmpi_router_dispatch")
  set(mpirouter_any_architecture "")
endif()
if(TARGET mpi_router_c)
  mpirouter_install_target(mpi_router_c c mpi_router_c_static)
  list(TRANSFORM mpirouter_cxx_libraries PREPEND -l OUTPUT_VARIABLE mpirouter_cxx_flags)
  list(JOIN mpirouter_cxx_flags " " mpirouter_cxx_flags)
  if(MPIROUTER_CUDA)
    find_package(CUDAToolkit REQUIRED)
    string(APPEND mpirouter_cxx_flags " -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -ldl -lrt -lpthread")
  endif()
  mpirouter_install_pkgconfig(
    mpi_router_c ${CMAKE_INSTALL_LIBDIR}
    DESCRIPTION "${PROJECT_DESCRIPTION}, for C"
    LIBS "-L\${libdir} -lmpi_router_c"
    PRIVATE "${mpirouter_cxx_flags}")
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
