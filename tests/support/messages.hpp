// Refusals are checked by what they say: one exception type has many causes.
#pragma once

#include <mpi_router/core/error.hpp>

#include <string>
#include <string_view>

namespace test_support {

/// The message of the usage_error that call() throws; empty where it throws none.
template <class Call>
[[nodiscard]] std::string message_of(Call&& call) {
  try {
    call();
  } catch (const mpi_router::usage_error& error) {
    return error.what();
  }
  return "";
}

[[nodiscard]] inline bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != text.npos;
}

/// Whether call() is refused with a message that has `part` in it.
template <class Call>
[[nodiscard]] bool refused(Call&& call, std::string_view part) {
  return contains(message_of(call), part);
}

}  // namespace test_support
