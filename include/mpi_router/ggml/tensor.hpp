// A tensor of ggml in messages, and what its memory must be.
#pragma once

#include <mpi_router/core/error.hpp>

#include <ggml-backend.h>
#include <ggml.h>

#include <string>

MPIROUTER_BEGIN
namespace ggml::detail {

/// "'blk.0.ffn_gate_exps.weight', q4_K [2048, 768, 64]": its extents in ggml's order, the contiguous axis
/// first.
[[nodiscard]] inline std::string describe(const ::ggml_tensor& t) {
  const bool has_name = t.name[0] != '\0';
  std::string out = has_name ? core::concatenate("'", t.name, "'") : std::string("a tensor without a name");
  out += core::concatenate(", ", ggml_type_name(t.type), " [");
  const int axes = ggml_n_dims(&t);
  for (int i = 0; i < axes; ++i) {
    out += core::concatenate(i > 0 ? ", " : "", t.ne[i]);
  }
  return out + "]";
}

template <class... Parts>
[[noreturn]] void refuse(const ::ggml_tensor& t, const Parts&... reason) {
  core::usage_failure(core::concatenate("ggml: ", describe(t), ": ", reason...));
}
template <class... Parts>
void expect(bool condition, const ::ggml_tensor& t, const Parts&... reason) {
  if (!condition) [[unlikely]] {
    refuse(t, reason...);
  }
}

inline void expect_tensor(const ::ggml_tensor* t, const char* what) {
  core::expect(t != nullptr, "ggml: ", what, ": no tensor, but a null pointer");
}

/// Throws usage_error where it lies in a buffer that is no host memory in ggml's own layout: a GPU's, one of
/// repacked weights. Of a tensor that has no buffer, or none yet, nothing is known.
inline void expect_host(const ::ggml_tensor& t) {
  const ::ggml_tensor& owner = t.view_src != nullptr ? *t.view_src : t;
  const auto buffer = t.buffer != nullptr ? t.buffer : owner.buffer;
  if (buffer != nullptr && !ggml_backend_buffer_is_host(buffer)) {
    refuse(t, "it lies in a buffer of ", ggml_backend_buffer_name(buffer),
           ", which is no host memory in ggml's own layout");
  }
}

/// Throws usage_error where there are no elements yet, or they are not to be read from here.
inline void expect_data(const ::ggml_tensor& t) {
  expect_host(t);
  expect(t.data != nullptr || ggml_nelements(&t) == 0, t, "it has no data yet: allocate it first");
}

}  // namespace ggml::detail
MPIROUTER_END
