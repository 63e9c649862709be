// What a file that cannot be used is: one exception, whose message names the file and the tensor.
#pragma once

#include <mpi_router/core/error.hpp>

#include <array>
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

/// Bytes of the character that `text` begins with, if it is whole UTF-8 and fit for a terminal: no control,
/// and none of the marks that break a line or turn its direction. Else 0.
[[nodiscard]] inline std::size_t printable_character(std::string_view text) {
  constexpr std::array<unsigned, 5> least{0, 0, 0x80, 0x800, 0x10000};  // of that many bytes
  const auto byte = [text](std::size_t i) {
    return static_cast<unsigned>(static_cast<unsigned char>(text[i]));
  };
  const unsigned first = byte(0);
  if (first < 0x80U) {
    return first < 0x20U || first == 0x7fU ? 0 : 1;
  }
  const std::size_t length = first < 0xe0U ? 2 : first < 0xf0U ? 3 : 4;
  if (first < 0xc2U || first > 0xf4U || text.size() < length) {
    return 0;
  }
  unsigned code = first & (0xffU >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0U) != 0x80U) {
      return 0;
    }
    code = code << 6U | (byte(i) & 0x3fU);
  }
  const auto within = [code](unsigned from, unsigned to) { return from <= code && code <= to; };
  const bool valid = within(least[length], 0x10ffff) && !within(0xd800, 0xdfff);
  const bool shown = !within(0x80, 0x9f) && !within(0x200e, 0x200f) && !within(0x2028, 0x202e) &&
                     !within(0x2066, 0x2069) && code != 0xfeff;
  return valid && shown ? length : 0;
}

/// Text from a file, fit for one line of a terminal and for readers of UTF-8: whatever byte is not part of a
/// printable_character() becomes `\xNN`; text of more than `most` bytes is cut.
[[nodiscard]] inline std::string printable(std::string_view text, std::size_t most = 200) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string out;
  std::size_t at = 0;
  while (at < text.size() && at < most) {
    const std::size_t length = printable_character(text.substr(at));
    if (at + length > most) {
      break;
    }
    if (length == 0) {
      const auto byte = static_cast<unsigned char>(text[at]);
      out += {'\\', 'x', digits[byte >> 4U], digits[byte & 15U]};
    }
    out += text.substr(at, length);
    at += length == 0 ? 1 : length;
  }
  return at < text.size() ? out + "..." : out;
}

/// A path in UTF-8, also where the system's own names are not.
[[nodiscard]] inline std::string path_text(const std::filesystem::path& path) {
  const auto text = path.u8string();
  return {text.begin(), text.end()};
}

/// The path of a name in UTF-8: the inverse of path_text().
[[nodiscard]] inline std::filesystem::path path_named(std::string_view name) {
  return std::u8string(name.begin(), name.end());
}

/// Throws file_error("file: reason"); without exceptions prints the same message to stderr and aborts.
template <class... Parts>
[[noreturn]] void file_failure(const std::filesystem::path& file, const Parts&... reason) {
  const std::string message = core::concatenate(printable(path_text(file), 4096), ": ", reason...);
#if MPIROUTER_HAS_EXCEPTIONS
  throw file_error(message);
#else
  std::fprintf(stderr, "mpi_router: %s\n", message.c_str());
  std::abort();
#endif
}

/// Of one tensor of the file.
template <class... Parts>
[[noreturn]] void tensor_failure(const std::filesystem::path& file, std::string_view name,
                                 const Parts&... reason) {
  file_failure(file, "tensor '", printable(name), "': ", reason...);
}

}  // namespace io

MPIROUTER_END_TYPES
