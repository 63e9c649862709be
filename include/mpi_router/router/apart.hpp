// Memory that a call reads and writes: what must lie apart, and what to call it where it does not.
#pragma once

#include <mpi_router/core/concepts.hpp>

#include <initializer_list>
#include <span>

MPIROUTER_BEGIN
namespace detail {

/// Memory that a call reads or writes, and what to call it.
struct named_range {
  const char* name;
  address_range range;
};

/// `one` meets none of the others.
inline void expect_apart(const char* what, const named_range& one,
                         std::initializer_list<named_range> others) {
  for (const named_range& other : others) {
    expect(!overlap(one.range, other.range), what, ": ", one.name, " and ", other.name, " overlap");
  }
}

/// What is written meets nothing that is read and nothing else that is written.
inline void expect_apart(const char* what, std::initializer_list<named_range> written,
                         std::initializer_list<named_range> read) {
  for (const named_range* one = written.begin(); one != written.end(); ++one) {
    expect_apart(what, *one, read);
    for (const named_range* other = one + 1; other != written.end(); ++other) {
      expect_apart(what, *one, {*other});
    }
  }
}

/// The elements of the workspace, or of the tape, that a call uses: there may be more.
template <class T>
[[nodiscard]] address_range first_elements(const vector_view<T>& v, index_t size) {
  return addresses(vector_view<T>(v.data(), size));
}

template <class T>
[[nodiscard]] address_range addresses_of(std::span<T> s) noexcept {
  return addresses(s.data(), static_cast<index_t>(s.size()), 1, 1, 1);
}

}  // namespace detail
MPIROUTER_END
