// What a file that cannot be used is: one exception, whose message names the file and the tensor.
#pragma once

#include <mpi_router/core/error.hpp>

#include <filesystem>
#include <string>
#include <string_view>

MPIROUTER_BEGIN_TYPES

#if MPIROUTER_HAS_EXCEPTIONS
/// A file that is missing, damaged, or cannot be written. The message is one line: file, tensor, reason.
/// A damaged file is no mistake of the caller, so this is not a usage_error.
class file_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};
#endif

namespace io {

/// Text from a file, fit for one line of a terminal: control bytes, and the C1 controls that UTF-8 writes as
/// two, become \xNN; long text is cut.
[[nodiscard]] inline std::string printable(std::string_view text, std::size_t most = 200) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string out;
  unsigned before = 0;
  for (const char c : text.substr(0, most)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20U || byte == 0x7fU || (before == 0xc2U && byte >= 0x80U && byte < 0xa0U)) {
      out += {'\\', 'x', digits[byte >> 4U], digits[byte & 15U]};
    } else {
      out += c;
    }
    before = byte;
  }
  return text.size() > most ? out + "..." : out;
}

/// Throws file_error("file: reason"); without exceptions prints the same message to stderr and aborts.
template <class... Parts>
[[noreturn]] void file_failure(const std::filesystem::path& file, const Parts&... reason) {
  const std::string message = core::concatenate(printable(file.string(), 4096), ": ", reason...);
#if MPIROUTER_HAS_EXCEPTIONS
  throw file_error(message);
#else
  std::fprintf(stderr, "mpi_router: %s\n", message.c_str());
  std::abort();
#endif
}

}  // namespace io

MPIROUTER_END_TYPES
