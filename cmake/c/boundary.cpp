// The text of the last failure of each thread, and names.
#include "boundary.hpp"
#include "host_backend.hpp"

#include <mpi_router/core/version.hpp>
#include <mpi_router/verify/certificate.hpp>

#include <cstring>

#define MPIROUTER_C_TEXT_(x) #x
#define MPIROUTER_C_TEXT(x) MPIROUTER_C_TEXT_(x)

namespace mpi_router_c {
namespace {

thread_local char text_of_thread[1024] = "";  // not a string: it must hold what tells that memory ran out

}  // namespace

mpi_router_code fail(mpi_router_code code, const char* text) noexcept {
  std::strncpy(text_of_thread, text, sizeof text_of_thread - 1);
  return code;
}

}  // namespace mpi_router_c

extern "C" {

const char* mpi_router_last_error() { return mpi_router_c::text_of_thread; }

const char* mpi_router_code_name(mpi_router_code code) {
  switch (code) {
    case MPIROUTER_OK: return "ok";
    case MPIROUTER_INVALID_ARGUMENT: return "invalid_argument";
    case MPIROUTER_UNSUPPORTED: return "unsupported";
    case MPIROUTER_OUT_OF_MEMORY: return "out_of_memory";
    case MPIROUTER_INTERNAL: return "internal";
    case MPIROUTER_DEVICE_ERROR: return "device_error";
    default: return "unknown";
  }
}

const char* mpi_router_version() {
  return MPIROUTER_C_TEXT(MPIROUTER_VERSION_MAJOR) "." MPIROUTER_C_TEXT(
      MPIROUTER_VERSION_MINOR) "." MPIROUTER_C_TEXT(MPIROUTER_VERSION_PATCH);
}

const char* mpi_router_instruction_set() { return mpi_router_c::name_of_kernels(); }

const char* mpi_router_status_name(std::uint8_t status) {
  return mpi_router::to_string(static_cast<mpi_router::status>(status)).data();
}

const char* mpi_router_certainty_name(std::int32_t certainty) {
  return certainty < 0 || certainty > MPIROUTER_CERTAINTY_RIGOROUS
             ? "unknown"
             : mpi_router::to_string(static_cast<mpi_router::certainty>(certainty)).data();
}

}  // extern "C"
