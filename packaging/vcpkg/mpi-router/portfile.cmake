# Builds the tree that this folder is in. A port of a release takes vcpkg_from_github() in place of the next line.
get_filename_component(SOURCE_PATH "${CURRENT_PORT_DIR}/../../.." ABSOLUTE)

vcpkg_check_features(
  OUT_FEATURE_OPTIONS FEATURE_OPTIONS
  FEATURES
    c MPIROUTER_C
    dispatch MPIROUTER_DISPATCH
    tools MPIROUTER_BUILD_TOOLS
)
set(compiled FALSE)
foreach(feature IN ITEMS c dispatch tools)
  if(feature IN_LIST FEATURES)
    set(compiled TRUE)
  endif()
endforeach()
if(NOT compiled)
  set(VCPKG_BUILD_TYPE release) # headers alone
endif()

vcpkg_cmake_configure(
  SOURCE_PATH "${SOURCE_PATH}"
  OPTIONS
    -DMPIROUTER_BUILD_TESTS=OFF
    -DMPIROUTER_BUILD_EXAMPLES=OFF
    -DMPIROUTER_BUILD_BENCHMARKS=OFF
    -DMPIROUTER_BUILD_DOCS=OFF
    -DMPIROUTER_FETCH_DEPENDENCIES=OFF
    -DMPIROUTER_WERROR=OFF
    -DMPIROUTER_MPI=OFF
    ${FEATURE_OPTIONS}
)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(PACKAGE_NAME mpi_router CONFIG_PATH lib/cmake/mpi_router)
vcpkg_fixup_pkgconfig()
file(INSTALL "${CMAKE_CURRENT_LIST_DIR}/usage" DESTINATION "${CURRENT_PACKAGES_DIR}/share/${PORT}")
if("tools" IN_LIST FEATURES)
  vcpkg_copy_tools(TOOL_NAMES verify_checkpoint AUTO_CLEAN)
endif()

file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/debug/include" "${CURRENT_PACKAGES_DIR}/debug/share")
if(NOT compiled)
  file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/lib")
endif()
file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/share/doc")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
