# Toolchain for Windows programs by mingw-w64, run by wine: cmake --toolchain cmake/mingw-w64.cmake …
set(CMAKE_SYSTEM_NAME Windows)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(CMAKE_CXX_COMPILER x86_64-w64-mingw32-g++-posix)
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)
set(CMAKE_CXX_FLAGS_INIT -Wa,-mbig-obj) # of templates there are more sections than 2^15

# No headers or libraries of the host.
set(CMAKE_FIND_ROOT_PATH /usr/x86_64-w64-mingw32)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
foreach(kind IN ITEMS LIBRARY INCLUDE PACKAGE)
  set(CMAKE_FIND_ROOT_PATH_MODE_${kind} ONLY)
endforeach()

find_program(MPIROUTER_WINE NAMES wine64 wine PATHS /usr/lib/wine)
mark_as_advanced(MPIROUTER_WINE)
if(MPIROUTER_WINE)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${MPIROUTER_WINE})
endif()
