// What a failure is: numeric events are data (status), mistakes of the caller are usage_error.
#pragma once

#include <mpi_router/core/config.hpp>

#include <string>
#include <string_view>

#if MPIROUTER_HAS_EXCEPTIONS
#include <stdexcept>
#else
#include <cstdio>
#include <cstdlib>
#endif

MPIROUTER_BEGIN_TYPES

/// What became of one expert's row, or of one token. Never thrown: one value for each.
enum class status : unsigned char {
  ok,            ///< the step is defined and was taken; the token has its experts
  zero_row,      ///< the router row is zero: it has no direction
  zero_image,    ///< the row is orthogonal to the row space of A (or A is zero): rM = 0
  non_finite,    ///< a NaN or an infinity in the row or in the image; no finite weights for the token
  masked,        ///< the token is padding: it has no experts and counts for nothing
  closed_expert  ///< fewer than K experts are open to the token: the others that it names have weight zero
};

/// Whether a token of this status has experts, and so counts in losses, loads and dispatch lists.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool is_routed(status s) noexcept {
  switch (s) {
    case status::ok:
    case status::closed_expert: return true;
    case status::zero_row:
    case status::zero_image:
    case status::non_finite:
    case status::masked: break;
  }
  return false;
}

/// What a row without a valid step becomes.
enum class degenerate_row : unsigned char {
  keep,  ///< the old row, unchanged
  zero   ///< zero, as torch.nn.functional.normalize gives for a zero vector
};

[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::string_view to_string(status s) noexcept {
  switch (s) {
    case status::ok: return "ok";
    case status::zero_row: return "zero_row";
    case status::zero_image: return "zero_image";
    case status::non_finite: return "non_finite";
    case status::masked: return "masked";
    case status::closed_expert: return "closed_expert";
  }
  return "unknown";
}

#if MPIROUTER_HAS_EXCEPTIONS
/// The one exception that the library throws for a mistake of the caller: shapes that do not fit, null
/// data, a radius that is not positive, overlapping input and output. The message names both sides.
class usage_error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};
#endif

namespace core {

/// Throws usage_error; without exceptions prints the same message to stderr and aborts.
[[noreturn]] inline void usage_failure(const std::string& message) {
#if MPIROUTER_HAS_EXCEPTIONS
  throw usage_error("mpi_router: " + message);
#else
  std::fprintf(stderr, "mpi_router: %s\n", message.c_str());
  std::abort();
#endif
}

template <class... Parts>
[[nodiscard]] std::string concatenate(const Parts&... parts) {
  std::string out;
  const auto append = [&out](const auto& part) {
    if constexpr (requires { std::to_string(part); }) {
      out += std::to_string(part);
    } else {
      out += part;
    }
  };
  (append(parts), ...);
  return out;
}

/// Checks a precondition; always on, O(1). The message is built only on failure.
template <class... Parts>
constexpr void expect(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]] {
    usage_failure(concatenate(parts...));
  }
}

/// For a value of an enumeration that has no name there, as a cast integer may: never a silent choice.
template <class Enum>
[[noreturn]] void unknown_value(const char* enumeration, Enum value) {
  usage_failure(concatenate(enumeration, ": ", static_cast<int>(value), " is none of its values"));
}

/// Whether a row without a step stays. Throws usage_error where the policy is neither of the two.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool keeps(degenerate_row policy) {
  switch (policy) {
    case degenerate_row::keep: return true;
    case degenerate_row::zero: return false;
  }
  unknown_value("degenerate_row", policy);
}

}  // namespace core

MPIROUTER_END_TYPES
