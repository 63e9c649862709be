// What no exception crosses: a call of the C interface becomes a code and a text.
#pragma once

#include <mpi_router/c/mpi_router.h>

#include <mpi_router/core/error.hpp>
#include <mpi_router/cuda/types.hpp>

#include <new>
#include <stdexcept>
#include <string>

namespace mpi_router_c {

using namespace mpi_router;

#if defined(MPIROUTER_C_CUDA)
inline constexpr bool is_built_with_cuda = true;
#else
inline constexpr bool is_built_with_cuda = false;
#endif

/// Well said, but not to be had: a type, a device.
class unsupported_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class... Parts>
[[noreturn]] void unsupported(const Parts&... parts) {
  throw unsupported_error("mpi_router: " + core::concatenate(parts...));
}

/// Keeps the text for mpi_router_last_error of this thread; allocates nothing. Returns the code.
mpi_router_code fail(mpi_router_code code, const char* text) noexcept;

/// The code of what body() throws, MPIROUTER_OK where it throws nothing.
template <class Body>
mpi_router_code guarded(const Body& body) noexcept {
  try {
    body();
    return MPIROUTER_OK;
  } catch (const unsupported_error& error) {
    return fail(MPIROUTER_UNSUPPORTED, error.what());
  } catch (const usage_error& error) {
    return fail(MPIROUTER_INVALID_ARGUMENT, error.what());
  } catch (const cuda::cuda_error& error) {
    return fail(MPIROUTER_DEVICE_ERROR, error.what());
  } catch (const std::bad_alloc&) {
    return fail(MPIROUTER_OUT_OF_MEMORY, "mpi_router: the scratch of the call could not be allocated");
  } catch (const std::exception& error) {
    return fail(MPIROUTER_INTERNAL, error.what());
  } catch (...) {
    return fail(MPIROUTER_INTERNAL, "mpi_router: an exception of an unknown type");
  }
}

/// Throws usage_error where a struct that the call needs is not there.
template <class T>
const T& given(const char* what, const char* name, const T* pointer) {
  core::expect(pointer != nullptr, what, ": ", name, " is null");
  return *pointer;
}

/// The enumerator of that number, one of 0 … last. Throws usage_error where there is none.
template <class Enum>
Enum enumerated(const char* what, const char* name, std::int32_t value, Enum last) {
  core::expect(value >= 0 && value <= static_cast<std::int32_t>(last), what, ": ", name, " is ", value,
               ", which is none of its values");
  return static_cast<Enum>(value);
}

}  // namespace mpi_router_c
