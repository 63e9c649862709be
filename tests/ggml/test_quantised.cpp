// Quantised tensors: rows are ggml's own dequantisation to the last bit, operators the products of those
// rows.
#include "graphs.hpp"

#include <mpi_router/backend/packed.hpp>
#include <mpi_router/backend/simd.hpp>
#include <mpi_router/ggml/operators.hpp>

#include <support/tolerance.hpp>

#include <bit>
#include <cmath>

using namespace ggml_test;
using namespace mpi_router;
using test_support::refused;

static_assert(MatrixRows<ggml::quantised_matrix>);
static_assert(FactoredGramOperators<ggml::expert_operators<reference>>);
static_assert(FactoredGramOperators<ggml::expert_operators<simd>>);
static_assert(ScalableGramOperator<ggml::expert_operator<simd>>);

namespace {

/// Every type of ggml whose numbers quantised weights are stored as.
std::vector<ggml_type> quantised_types() {
  std::vector<ggml_type> out;
  for (int number = 0; number < GGML_TYPE_COUNT; ++number) {
    const auto type = static_cast<ggml_type>(number);
    const auto* const traits = ggml_get_type_traits(type);
    if (traits->type_size > 0 && ggml_is_quantized(type) && traits->to_float != nullptr) out.push_back(type);
  }
  return out;
}

bool same(float a, float b) {
  return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) ||
         (std::isnan(a) && std::isnan(b));
}

/// Elements that differ from what ggml decodes.
index_t differences(const ggml::quantised_matrix& a, const ggml_tensor* t, index_t expert) {
  std::vector<float> want(static_cast<std::size_t>(t->ne[0]));
  std::vector<float> got(want.size() + 1, 7.0F);
  index_t different = 0;
  for (index_t f = 0; f < t->ne[1]; ++f) {
    ggml_get_type_traits(t->type)->to_float(static_cast<const char*>(t->data) +
                                                static_cast<std::size_t>(expert) * t->nb[2] +
                                                static_cast<std::size_t>(f) * t->nb[1],
                                            want.data(), t->ne[0]);
    a.load_row(f, got.data());
    for (std::size_t d = 0; d < want.size(); ++d) different += same(got[d], want[d]) ? 0 : 1;
  }
  return different + (got.back() == 7.0F ? 0 : 1);
}

void every_expert_is_decoded(const ggml_tensor* t) {
  const ggml::quantised_experts experts(t);
  REQUIRE(experts.shape() == expert_shape{t->ne[2], t->ne[1], t->ne[0]});
  for (index_t i = 0; i < experts.num_experts(); ++i) {
    const auto a = experts[i];
    CHECK(a.rows() == t->ne[1]);
    CHECK(a.cols() == t->ne[0]);
    CHECK(differences(a, t, i) == 0);
  }
}

/// apply, project and lift against sums in double over the rows that ggml decodes.
template <class Backend>
void multiplies_as_decoded(const ggml_tensor* t, const Backend& backend) {
  const ggml::expert_operators<Backend> operators(t, backend);
  const std::vector<double> all = values_of(t);
  const auto [n, f, d] = expert_shape{t->ne[2], t->ne[1], t->ne[0]};
  random_source random(3);
  const auto x = test_support::random_vector<float>(random, d);
  std::vector<float> u(x.size());
  std::vector<float> y(static_cast<std::size_t>(f));
  REQUIRE(operators.num_experts() == n);
  for (index_t i = 0; i < n; ++i) {
    const auto op = operators(i);
    REQUIRE(op.dimension() == d);
    REQUIRE(op.ffn_dim() == f);
    const double* const a = all.data() + i * f * d;
    std::vector<double> image(x.size());
    std::vector<double> projection(y.size());
    double energy = 0;
    double size = 0;
    for (index_t row = 0; row < f; ++row) {
      double& p = projection[static_cast<std::size_t>(row)];
      for (index_t k = 0; k < d; ++k) p += a[row * d + k] * double{x[static_cast<std::size_t>(k)]};
      for (index_t k = 0; k < d; ++k) image[static_cast<std::size_t>(k)] += p * a[row * d + k];
      for (index_t k = 0; k < d; ++k) size += a[row * d + k] * a[row * d + k];
      energy += p * p;
    }
    const double bound = test_support::tolerance<float>.arithmetic;
    CHECK(std::abs(double{op.apply(x, u)} - energy) <= bound * size * static_cast<double>(d) * 4);
    CHECK(test_support::relative_distance(u, image) <= bound * 10);
    op.project(vector_view<const float>(x), vector_view<float>(y));
    CHECK(test_support::relative_distance(y, projection) <= bound * 10);
    op.lift(vector_view<const float>(y), vector_view<float>(u));
    CHECK(test_support::relative_distance(u, image) <= bound * 10);
  }
}

}  // namespace

TEST_CASE("every quantised type: rows are those of ggml, to the last bit, whatever the bytes") {
  const context ctx = new_context();
  random_source random(11);
  const auto types = quantised_types();
  CHECK(types.size() >= 23);
  for (const auto type : types) {
    CAPTURE(std::string(ggml_type_name(type)));
    const index_t block = ggml_blck_size(type);
    for (const index_t blocks : {1, 3}) {
      every_expert_is_decoded(random_tensor(ctx, random, type, blocks * block, 5, 3, "quantised"));
    }
    ggml_tensor* any = ggml_new_tensor_3d(ctx.get(), type, 2 * block, 31, 2);  // NaN and infinite scales too
    for (std::size_t k = 0; k < ggml_nbytes(any); ++k) {
      static_cast<unsigned char*>(any->data)[k] = static_cast<unsigned char>(random.integer(0, 255));
    }
    if (type == GGML_TYPE_MXFP4) {
      for (std::size_t k = 0; k < ggml_nbytes(any); k += 17) {
        auto& scale = static_cast<unsigned char*>(any->data)[k];
        scale = scale == 255 ? 254 : scale;  // NaN here, a number there
      }
    }
    every_expert_is_decoded(any);
  }
}

TEST_CASE("a scale of MXFP4 that is no number gives NaN, where ggml reads one") {
  const context ctx = new_context();
  ggml_tensor* t = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_MXFP4, 32, 1, 1);
  std::memset(t->data, 0x22, 17);
  *static_cast<unsigned char*>(t->data) = 255;
  std::vector<float> row(32);
  ggml::quantised_experts(t)[0].load_row(0, row.data());
  for (const float x : row) CHECK(std::isnan(x));
}

TEST_CASE("every quantised type: operators are the products of its rows, with kernels and without") {
  const context ctx = new_context();
  random_source random(12);
  for (const auto type : quantised_types()) {
    CAPTURE(std::string(ggml_type_name(type)));
    const ggml_tensor* t = random_tensor(ctx, random, type, 3 * ggml_blck_size(type), 13, 2, "quantised");
    multiplies_as_decoded(t, reference{});
    multiplies_as_decoded(t, simd{});
  }
}

TEST_CASE("dense types go to the backend") {
  const context ctx = new_context();
  random_source random(13);
  for (const auto type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16}) {
    CAPTURE(std::string(ggml_type_name(type)));
    const ggml_tensor* t = random_tensor(ctx, random, type, 65, 33, 3, "dense");
    multiplies_as_decoded(t, reference{});
    multiplies_as_decoded(t, simd{});
  }
}

TEST_CASE("Q8_0, Q4_K and MXFP4 go in registers where the backend has kernels, the others by rows") {
  const context ctx = new_context();
  const auto goes_by_rows = [&](ggml_type type, const auto& backend) {
    const ggml_tensor* t = ggml_new_tensor_3d(ctx.get(), type, 256, 3, 1);
    std::vector<float> row(256);
    const auto op = ggml::gram_of_expert(ggml::experts(t), 0, row, backend);
    return std::holds_alternative<rows_operator<ggml::quantised_matrix, float>>(op.held());
  };
  for (const auto type : quantised_types()) {
    CAPTURE(std::string(ggml_type_name(type)));
    const bool has_kernels = type == GGML_TYPE_Q8_0 || type == GGML_TYPE_Q4_K || type == GGML_TYPE_MXFP4;
    CHECK(goes_by_rows(type, simd{}) == !has_kernels);
    CHECK(goes_by_rows(type, reference{}));
  }
}

TEST_CASE("rows among other rows, experts among rows: the same bits as without gaps") {
  const context ctx = new_context();
  random_source random(14);
  for (const auto type : quantised_types()) {
    CAPTURE(std::string(ggml_type_name(type)));
    const index_t d = ggml_blck_size(type);
    ggml_tensor* both = random_tensor(ctx, random, type, d, 6, 4, "gate_up");
    every_expert_is_decoded(
        ggml_view_3d(ctx.get(), both, d, 3, 4, both->nb[1], both->nb[2], 3 * both->nb[1]));
    ggml_tensor* in_turn = ggml_view_3d(ctx.get(), both, d, 3, 4, 2 * both->nb[1], both->nb[2], both->nb[1]);
    every_expert_is_decoded(in_turn);
    multiplies_as_decoded(in_turn, simd{});
    ggml_tensor* swapped = ggml_permute(ctx.get(), both, 0, 2, 1, 3);  // [D, N, F] seen [D, F, N]
    every_expert_is_decoded(swapped);
    multiplies_as_decoded(swapped, simd{});
  }
}

TEST_CASE("what cannot be decoded is refused, by the tensor's name") {
  const context ctx = new_context();
  const auto says = [](const ggml_tensor* t, std::string_view part) {
    return refused([&] { static_cast<void>(ggml::experts(t)); }, part);
  };
  for (const auto type : {GGML_TYPE_Q8_1, GGML_TYPE_Q8_K, GGML_TYPE_I8, GGML_TYPE_F64}) {
    ggml_tensor* t = ggml_new_tensor_3d(ctx.get(), type, 256, 3, 2);
    ggml_set_name(t, "w");
    CHECK(says(t, std::string("'w', ") + ggml_type_name(type) +
                      " [256, 3, 2]: experts of this type are not decoded"));
  }
  ggml_tensor* t = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_Q8_0, 64, 3, 2);
  ggml_set_name(t, "w");
  CHECK(says(ggml_permute(ctx.get(), t, 1, 0, 2, 3),
             "'w (permuted)', q8_0 [3, 64, 2]: its rows are no whole blocks of 32"));
  t->nb[0] = 68;
  CHECK(says(t, "its blocks must lie one after the other along D, not 68 bytes apart"));
  t->nb[0] = 34;
  t->nb[1] = 67;
  CHECK(says(t, "its rows of 68 bytes are 67 bytes apart"));
  t->nb[1] = 68;
  t->data = nullptr;
  CHECK(says(t, "it has no data yet"));
  t->ne[3] = 2;
  CHECK(says(t, "experts are of three axes"));

  ggml_tensor* fine = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_Q5_0, 64, 3, 2);
  std::vector<float> row(64);
  CHECK(refused([&] { static_cast<void>(ggml::gram_of_expert(ggml::experts(fine), 2, row)); },
                "expert 2 out of 2"));
  CHECK(refused([&] { static_cast<void>(ggml::gram_of_expert(ggml::experts(fine), -1, row)); },
                "expert -1 out of 2"));
  CHECK(refused(
      [&] { static_cast<void>(ggml::gram_of_expert(ggml::experts(fine), 0, std::span(row).first(63))); },
      "the rows have 64 elements, the scratch 63"));
}
