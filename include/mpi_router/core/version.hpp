// Version of mpi_router. CMake parses these three lines: keep their form.
#pragma once

#define MPIROUTER_VERSION_MAJOR 0
#define MPIROUTER_VERSION_MINOR 1
#define MPIROUTER_VERSION_PATCH 0
