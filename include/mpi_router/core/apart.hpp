// Memory that a call reads and writes: what must lie apart, and what to call it where it does not.
#pragma once

#include <mpi_router/core/by_products.hpp>
#include <mpi_router/core/concepts.hpp>

#include <array>
#include <cstddef>
#include <initializer_list>
#include <span>
#include <type_traits>

MPIROUTER_BEGIN
namespace detail {

/// Memory that a call reads or writes, and what to call it.
struct named_range {
  const char* name;
  address_range range;
};

/// `one` meets none of the others.
inline void expect_apart(const char* what, const named_range& one, std::span<const named_range> others) {
  for (const named_range& other : others) {
    expect(!overlap(one.range, other.range), what, ": ", one.name, " and ", other.name, " overlap");
  }
}
inline void expect_apart(const char* what, const named_range& one,
                         std::initializer_list<named_range> others) {
  expect_apart(what, one, std::span(others.begin(), others.size()));
}

/// What is written meets nothing that is read and nothing else that is written.
inline void expect_apart(const char* what, std::span<const named_range> written,
                         std::initializer_list<named_range> read) {
  for (std::size_t i = 0; i < written.size(); ++i) {
    expect_apart(what, written[i], read);
    expect_apart(what, written[i], written.subspan(i + 1));
  }
}
inline void expect_apart(const char* what, std::initializer_list<named_range> written,
                         std::initializer_list<named_range> read) {
  expect_apart(what, std::span(written.begin(), written.size()), read);
}

/// The elements of the workspace, or of the tape, that a call uses: there may be more.
template <class T>
[[nodiscard]] address_range first_elements(const vector_view<T>& v, index_t size) {
  return addresses(vector_view<T>(v.data(), size));
}

/// `size` elements, or none where there is no pointer.
template <class T>
[[nodiscard]] address_range addresses_of(const T* data, index_t size) noexcept {
  return addresses(data, data == nullptr ? 0 : size, 1, 1, 1);
}
template <class T>
[[nodiscard]] address_range addresses_of(std::span<T> s) noexcept {
  return addresses_of(s.data(), static_cast<index_t>(s.size()));
}

/// The by-products of n experts but the tape, each with its name.
template <class S, class Space>
[[nodiscard]] std::array<named_range, 7> by_product_ranges(const router_by_products<S, Space>& told,
                                                           index_t n) {
  std::array<named_range, 7> ranges{};
  std::size_t at = 0;
  for_each_by_product(told, [&](const char* name, const auto& elements) {
    if constexpr (std::is_pointer_v<std::remove_cvref_t<decltype(elements)>>) {
      ranges[at++] = {name, addresses_of(elements, n)};
    } else if constexpr (requires { addresses(elements); }) {
      ranges[at++] = {name, addresses(elements)};
    } else {
      ranges[at++] = {name, addresses_of(elements)};
    }
  });
  return ranges;
}

/// All of these, one after the other.
template <std::size_t N, class... More>
[[nodiscard]] std::array<named_range, N + sizeof...(More)> joined(const std::array<named_range, N>& ranges,
                                                                  const More&... more) {
  std::array<named_range, N + sizeof...(More)> all{};
  std::size_t at = 0;
  for (const named_range& range : ranges) {
    all[at++] = range;
  }
  ((all[at++] = more), ...);
  return all;
}

}  // namespace detail
MPIROUTER_END
