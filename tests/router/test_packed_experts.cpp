// The operators of a layer whose gates are packed: the rows that they give are those of the decoded experts,
// in every layout and format, with kernels and without.
#include <io/checkpoints.hpp>
#include <mpi_router/backend/packed.hpp>
#include <mpi_router/backend/simd.hpp>
#include <mpi_router/io/moe_layers.hpp>
#include <mpi_router/router/packed_experts.hpp>
#include <mpi_router/router/router_rows.hpp>
#include <mpi_router/router/router_rows_vjp.hpp>

#include <doctest/doctest.h>
#include <support/executors.hpp>
#include <support/messages.hpp>
#include <support/tolerance.hpp>

namespace test_packed_experts {
using namespace io_test;
using namespace mpi_router;

static_assert(FactoredGramOperators<packed_experts<simd>>);
static_assert(ScalableGramOperator<any_packed_operator<simd>>);

namespace {

constexpr index_t N = 3;
constexpr index_t F = 6;
constexpr index_t D = 64;

std::vector<std::byte> codes(index_t count, bool fp8) {
  test_support::random_source random(80);
  std::vector<std::byte> out(static_cast<std::size_t>(count));
  for (auto& b : out) {
    const auto code = static_cast<unsigned>(random.integer(0, 255));
    b = static_cast<std::byte>(fp8 && (code & 0x7fU) == 0x7fU ? code - 1 : code);
  }
  return out;
}

/// One layer of packed gates; `rows` of each expert's tensor, `name` of the tensors.
struct packed_model {
  temporary_folder folder;
  checkpoint_builder builder;

  packed_model() { builder.add<float>("layers.0.mlp.gate.weight", {N, D}, random_layer(7, N, 1, D).router); }
  void add(const std::string& name, dtype type, const std::vector<index_t>& shape,
           const std::vector<index_t>& scales) {
    builder.add_bytes(name, type, shape, codes(element_count(shape), type == dtype::f8_e4m3));
    std::vector<float> values;
    for (index_t i = 0; i < element_count(scales); ++i)
      values.push_back(0.25F + 0.5F * static_cast<float>(i % 5));
    builder.add<float>(name + "_scale_inv", scales, values);
  }
  [[nodiscard]] checkpoint open() const {
    builder.write(folder / "model.safetensors");
    return checkpoint(folder / "model.safetensors");
  }
};

template <class Experts, class Executor = serial_executor>
std::vector<float> rows_by(const Experts& experts, const moe_layer& layer, const Executor& executor = {}) {
  std::vector<float> router;
  visit_router(layer, [&](const auto& stored) {
    for (index_t i = 0; i < N; ++i) {
      for (index_t d = 0; d < D; ++d) router.push_back(static_cast<float>(stored(i, d)));
    }
  });
  std::vector<float> rows(static_cast<std::size_t>(N * D));
  std::vector<float> workspace(static_cast<std::size_t>(router_rows_workspace(N, D)));
  std::vector<status> statuses(static_cast<std::size_t>(N));
  router_rows(experts, row_major(std::as_const(router).data(), N, D), row_major(rows.data(), N, D),
              {.radius = router_radius::fixed(2)}, workspace, {.statuses = statuses}, executor);
  for (const auto s : statuses) CHECK(s == status::ok);
  return rows;
}

/// Against operators of the decoded gates.
void equals_decoded(const checkpoint& model, bool in_registers, const moe_search& search = {}) {
  const auto layers = find_moe_layers(model, search);
  REQUIRE(layers.size() == 1);
  const auto& layer = layers[0];
  REQUIRE(layer.shape() == expert_shape{N, F, D});
  std::vector<std::vector<float>> decoded;
  for (const auto& block : layer.gates) {
    visit_gate(block, [&](const auto& a) {
      auto& out = decoded.emplace_back();
      for (index_t f = 0; f < F; ++f) {
        for (index_t d = 0; d < D; ++d) out.push_back(static_cast<float>(a(f, d)));
      }
    });
    CHECK(packed_gate_of(block)->view().has_value() == in_registers);
  }
  const auto dense = [&](index_t i) {
    return gram(row_major(std::as_const(decoded[static_cast<std::size_t>(i)]).data(), F, D));
  };
  const packed_experts experts(layer, simd{});
  CHECK(experts.num_experts() == N);
  CHECK(experts(1).ffn_dim() == F);
  CHECK(experts(1).dimension() == D);
  const auto want = rows_by(dense, layer);
  const auto got = rows_by(experts, layer);
  for (std::size_t i = 0; i < got.size(); ++i) {
    CHECK(std::abs(double{got[i]} - double{want[i]}) <= 2 * test_support::tolerance<float>.identity);
  }
  CHECK(got == rows_by(experts, layer, test_support::reverse_executor{}));
  std::vector<float> x(static_cast<std::size_t>(D), 0.5F);
  std::vector<float> y(static_cast<std::size_t>(F));
  std::vector<float> z(y);
  experts(2).project(vector_view<const float>(x), vector_view<float>(y));
  dense(2).project(vector_view<const float>(x), vector_view<float>(z));
  for (std::size_t f = 0; f < y.size(); ++f) CHECK(y[f] == doctest::Approx(double{z[f]}).epsilon(1e-5));
}

std::string expert(index_t i) { return "layers.0.mlp.experts." + std::to_string(i) + ".gate_proj.weight"; }

}  // namespace

TEST_CASE("a tensor for each expert: FP8 in registers, int8 row by row") {
  packed_model m;
  SUBCASE("FP8") {
    for (index_t i = 0; i < N; ++i) m.add(expert(i), dtype::f8_e4m3, {F, D}, {F, 1});
    equals_decoded(m.open(), true);
  }
  SUBCASE("int8") {
    for (index_t i = 0; i < N; ++i) m.add(expert(i), dtype::i8, {F, D}, {F, 1});
    equals_decoded(m.open(), false);
  }
}

TEST_CASE("gate and up in one tensor of all experts: the gates' rows of it, with their scales") {
  for (const auto layout : {gate_layout::n2fd_concatenated, gate_layout::n2fd_interleaved}) {
    for (const index_t scales : {2 * F, index_t{1}}) {  // for each row, or one for all
      packed_model m;
      m.add("layers.0.mlp.experts.gate_up_proj", dtype::f8_e4m3, {N, 2 * F, D},
            scales == 1 ? std::vector<index_t>{1} : std::vector<index_t>{N, scales, 1});
      CAPTURE(static_cast<int>(layout));
      CAPTURE(scales);
      equals_decoded(m.open(), true, {.patterns = {}, .layout = layout, .layout_of_router = {}});
    }
  }
}

TEST_CASE("some rows of a packed matrix: each view has those rows, or there is none") {
  using packed::scale_type;
  std::vector<std::byte> memory = codes(4096, true);
  for (std::size_t i = 0; i < memory.size(); i += 34) memory[i + 1] = std::byte{0x3c};  // scales of Q8_0
  const std::vector<std::byte> exponents(64, std::byte{126});
  std::vector<float> numbers;
  for (int i = 0; i < 12; ++i) numbers.push_back(0.5F + 0.25F * static_cast<float>(i));
  const auto first_of = [](const auto& bytes, index_t n) {
    return std::span(bytes).first(static_cast<std::size_t>(n));
  };
  const auto fp8 = [&](index_t block_rows) {
    const index_t down = packed::parts_of(12, block_rows);
    return packed::any_matrix(packed::fp8_matrix(
        first_of(memory, 12 * 32), 12, 32,
        packed::scales(scale_type::f32, std::as_bytes(first_of(numbers, down)), down, 1), block_rows, 32));
  };
  const auto check = [](const packed::any_matrix& m, index_t first, index_t count, index_t step, bool there) {
    CAPTURE(m.description());
    CAPTURE(first);
    CAPTURE(step);
    const auto view = packed::view_of(m, first, count, step);
    REQUIRE(view.has_value() == there);
    if (!there) return;
    const std::vector<float> x(static_cast<std::size_t>(m.cols()), 0.5F);
    std::vector<float> y(static_cast<std::size_t>(count));
    std::vector<double> row(x.size());
    std::visit(
        [&](const auto& v) { gram(v, simd{}).project(vector_view<const float>(x), vector_view<float>(y)); },
        *view);
    for (index_t f = 0; f < count; ++f) {
      m.load_row(first + f * step, row.data());
      double want = 0;
      double size = 0;
      for (const double a : row) want += a / 2, size += std::abs(a);
      CHECK(std::abs(double{y[static_cast<std::size_t>(f)]} - want) <= 1e-6 * size);
    }
  };
  for (const index_t step : {index_t{1}, index_t{2}}) {
    for (const index_t first : {index_t{0}, index_t{1}, index_t{4}, index_t{5}}) {
      check(fp8(1), first, 3, step, true);
      check(fp8(12), first, 3, step, true);
      check(fp8(4), first, 4, step, first % 4 < step);
      check(packed::ggml_matrix(packed::ggml_type::q8_0, first_of(memory, 12 * 34), 12, 32), first, 3, step,
            true);
      check(packed::fp4_matrix(first_of(memory, 12 * 16), 12, 32,
                               packed::scales(scale_type::e8m0, first_of(exponents, 12), 12, 1), 32),
            first, 3, step, true);
    }
  }
  CHECK(test_support::refused([&] { static_cast<void>(packed::view_of(fp8(1), 8, 3, 2)); },
                              "rows 8, 10, …, 3 of them, of 12"));
}

TEST_CASE("what is no packed rows along D is refused, by its name") {
  packed_model m;
  for (index_t i = 0; i < N; ++i) m.builder.add<bf16>(expert(i), {F, D}, random_layer(8, 1, F, D).gates);
  const auto model = m.open();
  const auto layers = find_moe_layers(model);
  REQUIRE(layers.size() == 1);
  CHECK(!packed_gate_of(layers[0].gates[0]));
  CHECK(io_test::contains(message_of([&] { packed_experts<simd>{layers[0]}; }),
                          "gate_proj.weight': is BF16: no packed rows along D"));
}

}  // namespace test_packed_experts
