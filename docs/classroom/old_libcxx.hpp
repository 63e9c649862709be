// Debian 12's emscripten (3.1.6) brings a libc++ without std::bit_cast; its compiler has the builtin.
#pragma once

#include <version>

#ifndef __cpp_lib_bit_cast
namespace std {
template <class To, class From>
constexpr To bit_cast(const From& from) noexcept {
  return __builtin_bit_cast(To, from);
}
}  // namespace std
#endif
