// A step over packed experts beside one over f32 and bf16, and a plain read of f32: all in one run, in turn,
// on one thread, from memory. The weights of each are random bits; the time does not depend on them.
#include "../cpu/data.hpp"
#include "../cpu/floors.hpp"
#include "../cpu/measure.hpp"

#include <mpi_router/backend/dense.hpp>
#include <mpi_router/backend/packed.hpp>
#include <mpi_router/backend/simd.hpp>
#include <mpi_router/core/matrix_rows.hpp>
#include <mpi_router/io/packed/any_matrix.hpp>

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <ctime>
#include <span>

namespace {

using namespace bench;
using namespace mpi_router;

/// Packed rows of one format for all experts: `row_bytes` of codes, `scale_bytes` of scales beside them.
struct stored {
  stored(const expert_shape& s, index_t row, index_t scales)
      : row_bytes(row),
        scale_bytes(scales),
        codes(s.num_experts * s.ffn_dim * row),
        scale(s.num_experts * s.ffn_dim * scales) {
    std::mt19937 engine(1);
    for (index_t i = 0; i < codes.size(); ++i) codes.data()[i] = static_cast<std::uint8_t>(engine() & 0x77U);
    for (index_t i = 0; i < scale.size(); ++i)
      scale.data()[i] = static_cast<std::uint8_t>(120 + engine() % 8);
  }
  /// Scales of f16, about one, `every` bytes apart.
  void set_halves(index_t every, index_t count) const {
    for (index_t first = 0; first < codes.size(); first += every) {
      for (index_t k = 0; k < count; ++k) codes.data()[first + 2 * k + 1] = 0x3c;
    }
  }
  index_t row_bytes;
  index_t scale_bytes;
  buffer<std::uint8_t> codes;
  buffer<std::uint8_t> scale;
};

/// Everything that the contenders share.
class packed_problem {
 public:
  explicit packed_problem(const expert_shape& s)
      : shape(s),
        f32(weights()),
        bf16_(weights()),
        x(s.hidden_dim),
        u(s.hidden_dim),
        scratch(s.hidden_dim),
        grid(blocks(s.ffn_dim) * blocks(s.hidden_dim)),
        per_row(s.ffn_dim),
        fp8(s, s.hidden_dim, 0),
        mxfp4(s, s.hidden_dim / 2, s.hidden_dim / 32),
        q8_0(s, s.hidden_dim / 32 * 34, 0),
        q4_k(s, s.hidden_dim / 256 * 144, 0) {
    fill_random(f32, 1);
    fill_random(bf16_, 1);
    fill_random(x, 2);
    std::fill(grid.data(), grid.data() + grid.size(), 0.5F);
    std::fill(per_row.data(), per_row.data() + per_row.size(), 0.5F);
    q8_0.set_halves(34, 1);
    q4_k.set_halves(144, 2);
  }

  [[nodiscard]] std::vector<contender> contenders() const {
    const index_t f = shape.ffn_dim;
    const index_t d = shape.hidden_dim;
    const auto at = [this](const stored& s, index_t i) {
      return static_cast<const std::uint8_t*>(s.codes.data()) + i * shape.ffn_dim * s.row_bytes;
    };
    const auto fp8_of = [=, this](index_t i) {
      return fp8_view{.codes = at(fp8, i),
                      .rows = f,
                      .cols = d,
                      .row_bytes = d,
                      .scales = grid.data(),
                      .scale_row_bytes = 4 * blocks(d)};
    };
    return {
        steps("f32", [=, this](index_t i) { return gram(dense(f32, i), simd{}); }),
        steps("bf16", [=, this](index_t i) { return gram(dense(bf16_, i), simd{}); }),
        steps("FP8, 128×128 blocks", [=](index_t i) { return gram(fp8_of(i)); }),
        steps("FP8, a scale a row",
              [=, this](index_t i) {
                fp8_view view = fp8_of(i);
                view.scales = per_row.data();
                view.scale_row_bytes = 4;
                view.block_rows = 1;
                view.block_cols = d;
                return gram(view);
              }),
        steps("MXFP4",
              [=, this](index_t i) {
                return gram(mxfp4_view{.codes = at(mxfp4, i),
                                       .rows = f,
                                       .cols = d,
                                       .row_bytes = mxfp4.row_bytes,
                                       .scales = mxfp4.scale.data() + i * f * mxfp4.scale_bytes,
                                       .scale_row_bytes = mxfp4.scale_bytes});
              }),
        steps("Q8_0", [=, this](index_t i) { return gram(q8_0_view{at(q8_0, i), f, d, q8_0.row_bytes}); }),
        steps("Q4_K", [=, this](index_t i) { return gram(q4_k_view{at(q4_k, i), f, d, q4_k.row_bytes}); }),
        steps("FP8, row buffer", [=, this](index_t i) {
          const auto bytes = [](const void* data, index_t size) {
            return std::span(static_cast<const std::byte*>(data), static_cast<std::size_t>(size));
          };
          const packed::scales scales(packed::scale_type::f32, bytes(grid.data(), 4 * grid.size()), blocks(f),
                                      blocks(d));
          return gram_of_rows(packed::fp8_matrix(bytes(at(fp8, i), f * d), f, d, scales, 128, 128),
                              std::span(scratch.data(), static_cast<std::size_t>(d)));
        })};
  }

  [[nodiscard]] index_t weights() const { return shape.num_experts * shape.ffn_dim * shape.hidden_dim; }
  [[nodiscard]] const buffer<float>& floats() const { return f32; }

 private:
  static index_t blocks(index_t extent) { return (extent + 127) / 128; }

  template <class T>
  [[nodiscard]] matrix_view<const T> dense(const buffer<T>& b, index_t i) const {
    return gate_fd(static_cast<const T*>(b.data()) + i * shape.ffn_dim * shape.hidden_dim, shape.ffn_dim,
                   shape.hidden_dim);
  }
  /// One application of the operator of each expert.
  template <class Operators>
  [[nodiscard]] contender steps(const char* name, const Operators& operators) const {
    return {name, [this, operators] {
              for (index_t i = 0; i < shape.num_experts; ++i) {
                const auto op = operators(i);
                benchmark::DoNotOptimize(op.apply(vector_view<const float>(x.data(), x.size()),
                                                  vector_view<float>(u.data(), u.size())));
              }
            }};
  }

  expert_shape shape;
  buffer<float> f32;
  buffer<bf16> bf16_;
  buffer<float> x;
  buffer<float> u;
  buffer<float> scratch;
  buffer<float> grid;
  buffer<float> per_row;
  stored fp8;
  stored mxfp4;
  stored q8_0;
  stored q4_k;
};

/// Median seconds of each, in turn, of this process on its processor: what other programs take is not in it.
std::vector<double> processor_seconds(const std::vector<contender>& all, int repetitions) {
  std::vector<std::vector<double>> seconds(all.size());
  for (int round = -1; round < repetitions; ++round) {  // the first for pages
    for (std::size_t k = 0; k < all.size(); ++k) {
      const std::size_t i = (k + static_cast<std::size_t>(round + 1)) % all.size();
      const std::clock_t start = std::clock();
      all[i].run();
      if (round >= 0) seconds[i].push_back(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
    }
  }
  std::vector<double> out;
  for (auto& s : seconds) {
    const auto middle = s.begin() + static_cast<std::ptrdiff_t>(s.size() / 2);
    std::nth_element(s.begin(), middle, s.end());
    out.push_back(*middle);
  }
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  expert_shape shape{16, 768, 2048};
  int repetitions = 31;
  CLI::App app("Times a step over packed experts beside one over f32 and bf16, one thread, from memory.");
  app.add_option("--experts", shape.num_experts, "N")->check(CLI::PositiveNumber);
  app.add_option("--ffn", shape.ffn_dim, "F")->check(CLI::PositiveNumber);
  app.add_option("--hidden", shape.hidden_dim, "D, a multiple of 256")->check(CLI::PositiveNumber);
  app.add_option("--repetitions", repetitions, "rounds")->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  if (shape.hidden_dim % 256 != 0) {
    fmt::print(stderr, "D = {} is no multiple of 256\n", shape.hidden_dim);
    return 1;
  }

  const packed_problem p(shape);
  auto all = read_floors(p.floats().data(), p.floats().bytes(),
                         static_cast<std::size_t>(shape.hidden_dim) * sizeof(float), 1);
  const auto floors = static_cast<std::ptrdiff_t>(all.size());
  for (auto& c : p.contenders()) all.push_back(std::move(c));
  const auto t = processor_seconds(all, repetitions);

  const double floor = *std::min_element(t.begin(), t.begin() + floors);
  const double step = t[static_cast<std::size_t>(floors)];
  const auto weights = static_cast<double>(p.weights());
  fmt::print("N = {}, F = {}, D = {}, {}, one thread, processor time, median of {} rounds\n",
             shape.num_experts, shape.ffn_dim, shape.hidden_dim, xsimd::default_arch::name(), repetitions);
  fmt::print("{:<22} {:>9} {:>14} {:>16} {:>18}\n", "", "ms", "ns per weight", "/ read of f32",
             "/ our f32 step");
  const auto line = [&](const std::string& what, double seconds) {
    fmt::print("{:<22} {:>9.3f} {:>14.4f} {:>16.2f} {:>18.2f}\n", what, seconds * 1e3,
               seconds / weights * 1e9, seconds / floor, seconds / step);
  };
  line("plain read of f32", floor);
  for (std::size_t i = static_cast<std::size_t>(floors); i < all.size(); ++i) line(all[i].name, t[i]);
  return 0;
}
