// Views of ggml's tensors: each element is where nb[] says, and what does not fit is refused by its name.
#include "graphs.hpp"

#include <mpi_router/ggml/views.hpp>

#include <array>
#include <string>

using namespace ggml_test;
using namespace mpi_router;
using test_support::refused;

namespace {

/// Each element (i, f, d) against the address that ggml's own strides give it.
template <class T>
void is_where_strides_say(const expert_batch_view<const T>& view, const ggml_tensor* t) {
  REQUIRE(view.shape() == expert_shape{t->ne[2], t->ne[1], t->ne[0]});
  index_t elsewhere = 0;
  for (index_t i = 0; i < view.num_experts(); ++i) {
    const auto a = view[i];
    for (index_t f = 0; f < a.rows(); ++f) {
      for (index_t d = 0; d < a.cols(); ++d) {
        const auto* at = static_cast<const char*>(t->data) + static_cast<std::size_t>(i) * t->nb[2] +
                         static_cast<std::size_t>(f) * t->nb[1] + static_cast<std::size_t>(d) * t->nb[0];
        elsewhere += static_cast<const void*>(&a(f, d)) == at ? 0 : 1;
      }
    }
  }
  CHECK(elsewhere == 0);
}

template <class T>
void every_layout(ggml_type type) {
  const context ctx = new_context();
  for (const auto& [n, f, d] : {expert_shape{1, 1, 1}, expert_shape{3, 1, 5}, expert_shape{2, 7, 1},
                                expert_shape{4, 6, 33}, expert_shape{0, 3, 8}}) {
    ggml_tensor* t = ggml_new_tensor_3d(ctx.get(), type, d, f, n);
    is_where_strides_say<T>(ggml::experts<T>(t), t);
    is_where_strides_say<T>(ggml::experts<T>(static_cast<const ggml_tensor*>(t)), t);
    if (n == 0) continue;
    ggml_tensor* swapped = ggml_permute(ctx.get(), t, 1, 0, 2, 3);  // [F, D, N] as it lies, seen [D, F, N]
    CHECK(ggml::experts<T>(swapped).strides().ffn == 1);
    is_where_strides_say<T>(ggml::experts<T>(swapped), swapped);
    if (f % 2 == 0) {
      ggml_tensor* half = ggml_view_3d(ctx.get(), t, d, f / 2, n, t->nb[1], t->nb[2],
                                       static_cast<std::size_t>(f / 2) * t->nb[1]);
      is_where_strides_say<T>(ggml::experts<T>(half), half);
      ggml_tensor* odd = ggml_view_3d(ctx.get(), t, d, f / 2, n, 2 * t->nb[1], t->nb[2], t->nb[1]);
      is_where_strides_say<T>(ggml::experts<T>(odd), odd);
    }
  }
  ggml_tensor* one = ggml_new_tensor_2d(ctx.get(), type, 4, 3);
  CHECK(ggml::experts<T>(one).shape() == expert_shape{1, 3, 4});
  const auto rows = ggml::rows<T>(one);
  CHECK(rows.rows() == 3);
  CHECK(rows.cols() == 4);
  CHECK(&rows(2, 3) == static_cast<T*>(one->data) + 11);
  const auto columns = ggml::rows<T>(static_cast<const ggml_tensor*>(ggml_transpose(ctx.get(), one)));
  CHECK(columns.rows() == 4);
  CHECK(&columns(3, 2) == static_cast<T*>(one->data) + 11);
}

/// Headers of a tensor with data that is given.
ggml_tensor* tensor_at(const context& ctx, ggml_type type, void* data, const char* name) {
  ggml_tensor* t = ggml_new_tensor_3d(ctx.get(), type, 4, 3, 2);
  ggml_set_name(t, name);
  t->data = data;
  return t;
}

}  // namespace

TEST_CASE("every element is where ggml's strides say, of every type and layout") {
  every_layout<float>(GGML_TYPE_F32);
  every_layout<bf16>(GGML_TYPE_BF16);
  every_layout<f16>(GGML_TYPE_F16);
  every_layout<double>(GGML_TYPE_F64);
}

TEST_CASE("a type that is known at run time is the alternative of its own") {
  const context ctx = new_context();
  const auto index = [&](ggml_type type) {
    return ggml::experts(ggml_new_tensor_3d(ctx.get(), type, 256, 3, 2)).index();
  };
  CHECK(index(GGML_TYPE_F32) == 0);
  CHECK(index(GGML_TYPE_BF16) == 1);
  CHECK(index(GGML_TYPE_F16) == 2);
  CHECK(index(GGML_TYPE_Q4_K) == 3);
  CHECK(ggml::rows(ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, 4, 3)).index() == 2);
}

TEST_CASE("what does not fit is refused, by the tensor's name, type and extents") {
  const context ctx = new_context(false);
  alignas(8) std::array<std::byte, 256> memory{};
  ggml_tensor* t = tensor_at(ctx, GGML_TYPE_F32, memory.data(), "blk.0.ffn_gate_exps.weight");
  const auto says = [&](const ggml_tensor* tensor, std::string_view part) {
    return refused([&] { static_cast<void>(ggml::experts<float>(tensor)); }, part) &&
           refused([&] { static_cast<void>(ggml::experts(tensor)); }, part);
  };
  CHECK(refused([&] { static_cast<void>(ggml::experts<f16>(t)); },
                "ggml: 'blk.0.ffn_gate_exps.weight', f32 [4, 3, 2]: elements of f16 are asked of it"));
  CHECK(refused([&] { static_cast<void>(ggml::rows<float>(t)); }, "rows are of two axes, [D, N]"));
  CHECK(refused([&] { static_cast<void>(ggml::rows(t)); }, "rows are of two axes, [D, N]"));
  CHECK(says(nullptr, "experts: no tensor, but a null pointer"));
  CHECK(refused([&] { static_cast<void>(ggml::rows(nullptr)); }, "rows: no tensor, but a null pointer"));

  ggml_tensor* nameless = tensor_at(ctx, GGML_TYPE_F32, nullptr, "");
  CHECK(says(nameless, "a tensor without a name, f32 [4, 3, 2]: it has no data yet"));
  CHECK(says(tensor_at(ctx, GGML_TYPE_F32, memory.data() + 1, "a"),
             "'a', f32 [4, 3, 2]: its data is not aligned"));
  ggml_tensor* four = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, 4, 3, 2, 2);
  CHECK(says(four, "f32 [4, 3, 2, 2]: experts are of three axes, [D, F, N]"));
  ggml_tensor* odd = tensor_at(ctx, GGML_TYPE_F32, memory.data(), "odd");
  odd->nb[1] = 18;
  CHECK(says(odd,
             "'odd', f32 [4, 3, 2]: along axis 1 its elements are 18 bytes apart, no multiple of their 4"));
  CHECK(refused([&] { static_cast<void>(ggml::experts(tensor_at(ctx, GGML_TYPE_I32, memory.data(), "i"))); },
                "'i', i32 [4, 3, 2]: experts of this type are not decoded"));
  CHECK(refused([&] { static_cast<void>(ggml::rows(ggml_new_tensor_2d(ctx.get(), GGML_TYPE_Q8_0, 32, 2))); },
                "q8_0 [32, 2]: rows are F32, BF16 or F16"));
}

TEST_CASE("a buffer that is no host memory is refused, also for views into it") {
  const auto foreign = foreign_buffer_type();
  if (foreign == nullptr) {
    MESSAGE("skipped: this ggml has no buffer type that is no host memory");
    return;
  }
  const context ctx = new_context(false);
  ggml_tensor* t = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_Q4_0, 64, 8, 2);
  ggml_set_name(t, "gate");
  const auto buffer = ggml_backend_buft_alloc_buffer(foreign, 1 << 16);
  REQUIRE(ggml_backend_tensor_alloc(buffer, t, ggml_backend_buffer_get_base(buffer)) == GGML_STATUS_SUCCESS);
  const std::string part = "it lies in a buffer of " + std::string(ggml_backend_buffer_name(buffer));
  CHECK(refused([&] { static_cast<void>(ggml::experts(t)); }, "'gate', q4_0 [64, 8, 2]: " + part));
  ggml_tensor* half = ggml_view_3d(ctx.get(), t, 64, 4, 2, t->nb[1], t->nb[2], 0);
  CHECK(refused([&] { static_cast<void>(ggml::experts(half)); }, part));
  ggml_backend_buffer_free(buffer);
}
