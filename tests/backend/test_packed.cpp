// Kernels over packed weights, of the instruction set that this file is compiled for, against the decoders of
// io/ in double and plain loops.
#include "guarded.hpp"
#include "packed_problems.hpp"

#include <mpi_router/router/router_rows.hpp>

#include <support/tolerance.hpp>

#include <cstring>

using namespace packed_problems;

template <class View>
using operator_for = decltype(operator_of(View{}));
static_assert(ScalableGramOperator<operator_for<fp8_view>> && FactoredGramOperator<operator_for<fp8_view>>);
static_assert(ScalableGramOperator<operator_for<mxfp4_view>> && !PackedView<matrix_view<float>>);

namespace {

constexpr double bound = tolerance<float>.arithmetic;

using floats = std::vector<float>;
floats filled(index_t size, float value = 7) { return floats(static_cast<std::size_t>(size), value); }
/// In an odd place: registers are no longer aligned.
vector_view<float> shifted(floats& storage) {
  return {storage.data() + 1, static_cast<index_t>(storage.size()) - 1};
}

template <class Op>
void equals_plain_loops(const Op& op, const packed::any_matrix& m) {
  const oracle a(m);
  REQUIRE(op.dimension() == a.cols);
  REQUIRE(op.ffn_dim() == a.rows);
  random_source random(5);
  floats x = random_vector<float>(random, a.cols + 1);
  floats from = random_vector<float>(random, a.rows + 1);
  floats u = filled(a.cols + 1);
  floats y = filled(a.rows + 1);
  const vector_view<const float> in(shifted(x));
  const std::vector<double> given(x.begin() + 1, x.end());
  const double size = a.size();

  const auto projection = a.project(given);
  const float energy = op.apply(in, shifted(u));
  CHECK(distance(floats(u.begin() + 1, u.end()), a.lift(projection)) <= bound * size * size * norm(given));
  CHECK(std::abs(double{energy} - std::pow(norm(projection), 2)) <= bound * std::pow(size * norm(given), 2));
  CHECK(u[0] == 7);

  op.project(in, shifted(y));
  CHECK(distance(floats(y.begin() + 1, y.end()), projection) <= bound * size * norm(given));
  CHECK(y[0] == 7);

  op.lift(vector_view<const float>(shifted(from)), shifted(u));
  const floats lifted_from(from.begin() + 1, from.end());
  CHECK(distance(floats(u.begin() + 1, u.end()), a.lift(lifted_from)) <= bound * size * norm(lifted_from));
}

/// One row, as lift(1) and project(e_d) show it.
floats shown_by_lift(const packed::any_view& view, index_t cols) {
  floats u = filled(cols);
  const float one[] = {1};
  std::visit(
      [&](const auto& v) { operator_of(v).lift(vector_view<const float>(one, 1), vector_view<float>(u)); },
      view);
  return u;
}
floats shown_by_project(const packed::any_view& view, index_t cols) {
  floats all = filled(cols);
  floats x = filled(cols, 0);
  for (std::size_t d = 0; d < x.size(); ++d) {
    x[d] = 1;
    std::visit(
        [&](const auto& v) {
          operator_of(v).project(vector_view<const float>(x), vector_view<float>(&all[d], 1));
        },
        view);
    x[d] = 0;
  }
  return all;
}
/// The decoders agree on a row to the last bit, or within `slack`.
void shows_exactly(const problem& p, double slack = 0) {
  const oracle a(p.matrix());
  const floats lifted = shown_by_lift(p.view(), a.cols);
  const floats projected = shown_by_project(p.view(), a.cols);
  index_t different = 0;
  for (std::size_t d = 0; d < lifted.size(); ++d) {
    const auto want = static_cast<float>(a.a[d]);
    const auto close = [&](float got) { return same(got, want) || std::abs(double{got} - a.a[d]) <= slack; };
    different += close(lifted[d]) && close(projected[d]) ? 0 : 1;
  }
  CHECK(different == 0);
}

}  // namespace

TEST_CASE("apply, project and lift are those of the decoded matrix") {
  for_each_problem([](const problem& p) {
    CAPTURE(p.name);
    CAPTURE(p.matrix().rows());
    CAPTURE(p.matrix().cols());
    p.with_operator([&](const auto& op) { equals_plain_loops(op, p.matrix()); });
  });
}

TEST_CASE("images in double are those of codes and scales as they are, alone and two in a read") {
  random_source random(16);
  bool is_there = false;
  for_each_problem([&](const problem& p) {
    const oracle a(p.matrix());
    CAPTURE(p.name);
    CAPTURE(a.rows);
    CAPTURE(a.cols);
    p.with_operator([&](const auto& op) {
      is_there = is_there || op.sums_in_double();
      CHECK((p.name == "FP8" || !op.sums_in_double()));
      if (!op.sums_in_double()) return;
      const auto size = static_cast<std::size_t>(a.cols);
      std::vector<double> x[2], u[2], alone(size + 1, 7);
      for (auto& one : x) one = random_vector<double>(random, a.cols + 1);
      for (auto& one : u) one.assign(size + 1, 7);
      const auto from = [&](int k) { return vector_view<const double>(x[k].data() + 1, a.cols); };
      const auto to = [&](auto& v) { return vector_view<double>(v.data() + 1, a.cols); };
      const auto both = op.template images_in_double<2>({from(0), from(1)}, {to(u[0]), to(u[1])});
      for (int k = 0; k < 2; ++k) {
        const auto energy = op.template images_in_double<1>({from(k)}, {to(alone)})[0];
        CHECK(alone == u[k]);
        CHECK(energy == both[static_cast<std::size_t>(k)]);
        const std::vector<double> given(x[k].begin() + 1, x[k].end());
        const auto y = a.project(given);
        const double scale = 1e-14 * a.size() * norm(given);
        CHECK(distance(std::vector<double>(alone.begin() + 1, alone.end()), a.lift(y)) <= scale * a.size());
        CHECK(std::abs(energy - std::pow(norm(y), 2)) <= scale * a.size() * norm(given));
        CHECK(alone[0] == 7);
      }
    });
  });
#if !defined(MPIROUTER_TEST_DISPATCH) && defined(__AVX2__) && defined(__F16C__)
  CHECK(is_there);
#endif
}

TEST_CASE("images in double: what they refuse") {
  random_source random(17);
  fp8(random, {3, 40, 128, 128}, packed::scale_type::f32).with_operator([](const auto& op) {
    std::vector<double> all(200, 1.0);
    const auto at = [&](index_t i, index_t stride = 1) {
      return vector_view<double>(all.data() + i, 40, stride);
    };
    const auto refused = [&](const vector_view<double>& x, const vector_view<double>& y,
                             const vector_view<double>& u, const vector_view<double>& v) {
      try {
        static_cast<void>(op.template images_in_double<2>({x, y}, {u, v}));
      } catch (const usage_error& error) {
        return std::string(error.what()).find("images_in_double") != std::string::npos;
      }
      return false;
    };
    CHECK(refused(at(0), at(40), at(80), at(120)) == !op.sums_in_double());
    CHECK(refused(at(0), at(40), at(80), at(119)));
    CHECK(refused(at(0), at(40), at(30), at(120)));
    CHECK(refused(at(0), at(40), at(120), at(79)));
    CHECK(refused(at(0, 2), at(80), at(120), at(160)));
    CHECK(refused({all.data(), 39}, at(40), at(80), at(120)));
  });
}

TEST_CASE("FP8: every code, with scales of every type") {
  random_source random(1);
  for (const auto type : fp8_scales) {
    problem p = fp8(random, {1, 256, 1, 48}, type);
    for (index_t i = 0; i < 256; ++i) p.bytes[0][i] = static_cast<std::byte>((i & 127) == 127 ? 0 : i);
    shows_exactly(p);
  }
}

TEST_CASE("MXFP4: every code with every scale") {
  random_source random(2);
  for (index_t scale = 0; scale < 256; ++scale) {
    if (scale == 253 || scale == 254) continue;  // 6 · 2^126 is none of float's
    problem p = mxfp4(random, 1, 32, scale, scale);
    for (index_t i = 0; i < 16; ++i) p.bytes[0][i] = static_cast<std::byte>(16 * i + (i + scale) % 16);
    CAPTURE(scale);
    shows_exactly(p);
  }
}

TEST_CASE("MXFP4 in ggml's blocks: every code with every scale") {
  random_source random(15);
  for (index_t scale = 0; scale < 256; ++scale) {
    if (scale == 253 || scale == 254) continue;
    problem p = ggml(random, packed::ggml_type::mxfp4, 1, 64);
    for (index_t i = 0; i < 34; ++i) {
      p.bytes[0][i] = static_cast<std::byte>(i % 17 == 0 ? scale : 16 * (i % 17 - 1) + (i + scale) % 16);
    }
    CAPTURE(scale);
    shows_exactly(p);
  }
}

TEST_CASE("Q8_0: every code, scales at the ends of their range") {
  random_source random(3);
  problem p = ggml(random, packed::ggml_type::q8_0, 1, 256);
  for (const unsigned scale : {0x0001U, 0x03ffU, 0x0400U, 0x8001U, 0x3c00U, 0x7bffU, 0xfbffU, 0U}) {
    for (index_t b = 0; b < 8; ++b) {
      p.bytes[0][34 * b] = static_cast<std::byte>(scale & 255U);
      p.bytes[0][34 * b + 1] = static_cast<std::byte>(scale >> 8);
      for (index_t i = 0; i < 32; ++i) p.bytes[0][34 * b + 2 + i] = static_cast<std::byte>(32 * b + i);
    }
    CAPTURE(scale);
    shows_exactly(p);
  }
}

TEST_CASE("Q4_K: every code with scales and minima of all six bits") {
#if defined(MPIROUTER_TEST_SHORT)
  constexpr index_t scales = 4, wide = 3;
#else
  constexpr index_t scales = 64, wide = 50;
#endif
  random_source random(4);
  for (index_t k = 0; k < scales; ++k) {
    problem p = ggml(random, packed::ggml_type::q4_k, 1, 256);
    for (const index_t first : {index_t{0}, index_t{2}}) {  // d and dmin are 1
      p.bytes[0][first] = std::byte{0};
      p.bytes[0][first + 1] = std::byte{0x3c};
    }
    for (index_t i = 0; i < 12; ++i) p.bytes[0][4 + i] = static_cast<std::byte>(random.integer(0, 255));
    CAPTURE(k);
    shows_exactly(p);
  }
  for (index_t k = 0; k < wide; ++k)
    shows_exactly(ggml(random, packed::ggml_type::q4_k, 1, 512), 2e-6 * 63 * 16 * 6);
}

TEST_CASE("a NaN of FP8 is one of its row, and of its column") {
  random_source random(6);
  for (const index_t cols : {index_t{1}, index_t{37}, index_t{64}, index_t{150}}) {
    for (index_t d = 0; d < cols; d += d < 3 ? 1 : 7) {
      for (const unsigned code : {0x7fU, 0xffU}) {
        problem p = fp8(random, {6, cols, 128, 128}, packed::scale_type::f32);
        p.bytes[0][4 * cols + d] = static_cast<std::byte>(code);
        CAPTURE(cols);
        CAPTURE(d);
        p.with_operator([&](const auto& op) {
          floats u = filled(cols);
          floats y = filled(6);
          const floats x = filled(cols, 0.5F);
          const float energy = op.apply(vector_view<const float>(x), vector_view<float>(u));
          CHECK(std::isnan(energy));
          for (const float v : u) CHECK(std::isnan(v));
          if (op.sums_in_double()) {
            const std::vector<double> wide(x.begin(), x.end());
            std::vector<double> image(x.size());
            CHECK(std::isnan(op.template images_in_double<1>({vector_view<const double>(wide)},
                                                             {vector_view<double>(image)})[0]));
            for (const double v : image) CHECK(std::isnan(v));
          }
          op.project(vector_view<const float>(x), vector_view<float>(y));
          for (std::size_t f = 0; f < 6; ++f) CHECK(std::isnan(y[f]) == (f == 4));
          op.lift(vector_view<const float>(filled(6, 1)), vector_view<float>(u));
          for (index_t k = 0; k < cols; ++k) CHECK(std::isnan(u[static_cast<std::size_t>(k)]) == (k == d));
        });
      }
    }
  }
}

TEST_CASE("a scale that is no number is not lost") {
  random_source random(7);
  const auto gives_a_number = [](const problem& p) {
    bool finite = true;
    p.with_operator([&](const auto& op) {
      floats u = filled(op.dimension());
      const floats x = filled(op.dimension(), 0.5F);
      finite = is_finite(op.apply(vector_view<const float>(x), vector_view<float>(u)));
    });
    return finite;
  };
  problem mx = mxfp4(random, 5, 96);
  CHECK(gives_a_number(mx));
  mx.bytes[1][4 * 3 + 1] = std::byte{255};
  CHECK_FALSE(gives_a_number(mx));
  problem no_numbers = mxfp4(random, 4, 32, 255, 255);  // NaN, and not infinite
  for (index_t i = 0; i < 64; ++i) no_numbers.bytes[0][i] = std::byte{0x22};
  no_numbers.with_operator([](const auto& op) {
    floats u = filled(32);
    op.lift(vector_view<const float>(filled(4, 1)), vector_view<float>(u));
    for (const float v : u) CHECK(std::isnan(v));
  });
  problem blocks = ggml(random, packed::ggml_type::mxfp4, 5, 96);
  CHECK(gives_a_number(blocks));
  blocks.bytes[0][17 * (4 * 3 + 1)] = std::byte{255};
  CHECK_FALSE(gives_a_number(blocks));
  for (const auto type : {packed::ggml_type::q8_0, packed::ggml_type::q4_k}) {
    for (const unsigned bits : {0x7c00U, 0x7e00U}) {
      problem p = ggml(random, type, 5, 512);
      CHECK(gives_a_number(p));
      const index_t block = packed::ggml_block_of(type).bytes;
      p.bytes[0][7 * block] = static_cast<std::byte>(bits & 255U);
      p.bytes[0][7 * block + 1] = static_cast<std::byte>(bits >> 8);
      CHECK_FALSE(gives_a_number(p));
    }
  }
  for (const float scale :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    problem p = fp8(random, {5, 70, 2, 32}, packed::scale_type::f32);
    odd_bytes scales(0);
    for (int i = 0; i < 9; ++i) scales.append(i == 5 ? scale : 1.0F);
    p.bytes[1] = scales;
    CHECK_FALSE(gives_a_number(p));
  }
}

TEST_CASE("apply_scaled: weights whose squares no float holds") {
  random_source random(8);
  std::vector<problem> extreme{mxfp4(random, 5, 64, 0, 4), mxfp4(random, 5, 64, 250, 254),
                               mxfp4(random, 5, 64, 10, 20), ggml(random, packed::ggml_type::q8_0, 3, 64),
                               ggml(random, packed::ggml_type::q4_k, 3, 256)};
  for (const float scale : {1e-38F, 1e-30F, 1e30F, 3e35F}) {
    problem p = fp8(random, {6, 50, 128, 128}, packed::scale_type::f32);
    odd_bytes scales(0);
    scales.append(scale);
    p.bytes[1] = scales;
    extreme.push_back(p);
  }
  for (const problem& p : extreme) {
    for (const float magnitude : {1e-30F, 1.0F, 1e30F}) {
      const oracle a(p.matrix());
      CAPTURE(p.name);
      CAPTURE(magnitude);
      floats x = random_vector<float>(random, a.cols, double{magnitude});
      floats u = filled(a.cols);
      p.with_operator([&](const auto& op) {
        const auto got = op.apply_scaled(vector_view<const float>(x), vector_view<float>(u));
        const auto y = a.project(x);
        const auto image = a.lift(y);
        std::vector<double> unscaled;
        for (const float v : u) unscaled.push_back(std::ldexp(double{v}, got.image_exponent));
        CHECK(distance(unscaled, image) <= bound * norm(image));
        CHECK(std::ldexp(double{got.energy}, got.energy_exponent) ==
              doctest::Approx(std::pow(norm(y), 2)).epsilon(bound));
      });
    }
  }
}

TEST_CASE("apply_scaled: an infinity is no magnitude to divide by") {
  random_source random(15);
  problem p = ggml(random, packed::ggml_type::q8_0, 3, 64);
  p.bytes[0][34 * 3] = std::byte{0};
  p.bytes[0][34 * 3 + 1] = std::byte{0x7c};
  for (index_t k = 2; k < 34; ++k) p.bytes[0][34 * 3 + k] = std::byte{1};  // no infinity less another
  p.with_operator([](const auto& op) {
    floats u = filled(64);
    const floats x = filled(64, 0.5F);
    const auto got = op.apply_scaled(vector_view<const float>(x), vector_view<float>(u));
    CHECK(got.energy == std::numeric_limits<float>::infinity());  // divided by infinity it were NaN
  });
}

TEST_CASE("nothing outside codes, scales and vectors is touched") {
  using test_support::guarded;
  using side = guarded<std::byte>::side;
  random_source random(9);
  for_each_problem([&](const problem& p) {
    for (const bool after : {false, true}) {
      std::vector<guarded<std::byte>> memory;
      memory.reserve(p.bytes.size());
      for (const auto& b : p.bytes) {
        memory.emplace_back(b.size(), after ? side::after : side::before);
        if (b.size() > 0) std::memcpy(memory.back().data(), b.span().data(), b.span().size());
      }
      std::visit(
          [&](auto v) {
            if constexpr (requires { v.codes; }) {
              v.codes = memory[0].data();
              v.scales = memory[1].data();
            } else {
              v.blocks = memory[0].data();
            }
            const auto op = operator_of(v);
            const auto at = after ? guarded<float>::side::after : guarded<float>::side::before;
            const guarded<float> x(v.cols, at);
            const guarded<float> u(v.cols, at);
            const guarded<float> y(v.rows, at);
            std::fill(x.data(), x.data() + v.cols, 1.0F);
            const vector_view<const float> in(x.data(), v.cols);
            op.project(in, vector_view<float>(y.data(), v.rows));
            op.lift(vector_view<const float>(y.data(), v.rows), vector_view<float>(u.data(), v.cols));
            CHECK(is_finite(op.apply(in, vector_view<float>(u.data(), v.cols))));
            if (op.sums_in_double()) {
              const auto side_of = after ? guarded<double>::side::after : guarded<double>::side::before;
              const guarded<double> wide(v.cols, side_of);
              const guarded<double> image(v.cols, side_of);
              std::fill(wide.data(), wide.data() + v.cols, 1.0);
              CHECK(
                  is_finite(op.template images_in_double<1>({vector_view<const double>(wide.data(), v.cols)},
                                                            {vector_view<double>(image.data(), v.cols)})[0]));
            }
          },
          p.view());
    }
  });
}

TEST_CASE("vectors with gaps give what others give") {
  random_source random(10);
  for (const problem& p :
       {fp8(random, {5, 70, 2, 32}, packed::scale_type::f16), mxfp4(random, 5, 64),
        ggml(random, packed::ggml_type::q8_0, 5, 64), ggml(random, packed::ggml_type::q4_k, 5, 256)}) {
    const oracle a(p.matrix());
    p.with_operator([&](const auto& op) {
      const index_t f = op.ffn_dim();
      const index_t d = op.dimension();
      const floats x = random_vector<float>(random, 3 * d);
      const vector_view<const float> in(x.data(), d, 3);
      std::vector<double> given;
      for (index_t i = 0; i < d; ++i) given.push_back(double{in[i]});
      const auto y = a.project(given);
      floats u = filled(2 * d);
      floats z = filled(2 * f);
      const vector_view<float> out(u.data(), d, 2);
      const vector_view<float> projection(z.data(), f, 2);
      const auto compact = [](const vector_view<float>& v) {
        floats all;
        for (index_t i = 0; i < v.size(); ++i) all.push_back(v[i]);
        return all;
      };
      const double size = a.size();
      const float energy = op.apply(in, out);
      CHECK(distance(compact(out), a.lift(y)) <= bound * size * size * norm(given));
      CHECK(double{energy} == doctest::Approx(std::pow(norm(y), 2)).epsilon(bound));
      op.project(in, projection);
      CHECK(distance(compact(projection), y) <= bound * size * norm(given));
      op.lift(vector_view<const float>(projection), out);
      CHECK(distance(compact(out), a.lift(y)) <= bound * size * size * norm(given));
      CHECK(u[1] == 7);
    });
  }
}

TEST_CASE("rows may lie apart, as those of gate and up in turn do; the bits do not depend on where") {
  random_source random(11);
  const problem p = mxfp4(random, 8, 96);
  auto every_other = std::get<mxfp4_view>(p.view());
  every_other.rows = 4;
  every_other.row_bytes *= 2;
  every_other.scale_row_bytes *= 2;
  const problem q = ggml(random, packed::ggml_type::q8_0, 4, 96);
  std::vector<std::byte> moved(q.bytes[0].span().begin(), q.bytes[0].span().end());
  auto elsewhere = std::get<q8_0_view>(q.view());
  elsewhere.blocks = moved.data();
  const floats x = random_vector<float>(random, 96);
  floats u = filled(96);
  floats v = filled(96);
  const vector_view<const float> in(x);
  const oracle a(p.matrix());
  auto y = a.project(x);
  for (const std::size_t f : {1U, 3U, 5U, 7U}) y[f] = 0;
  const float energy = operator_of(every_other).apply(in, vector_view<float>(u));
  CHECK(distance(u, a.lift(y)) <= bound * std::pow(a.size(), 2) * norm(x));
  CHECK(double{energy} == doctest::Approx(std::pow(norm(y), 2)).epsilon(bound));

  CHECK(operator_of(elsewhere).apply(in, vector_view<float>(u)) ==
        operator_of(std::get<q8_0_view>(q.view())).apply(in, vector_view<float>(v)));
  CHECK(u == v);
}

TEST_CASE("a view that cannot be, and vectors that do not fit, are refused") {
  random_source random(12);
  const problem f8 = fp8(random, {4, 40, 2, 16}, packed::scale_type::f32);
  const problem mx = mxfp4(random, 4, 64);
  const problem q8 = ggml(random, packed::ggml_type::q8_0, 4, 64);
  const problem q4 = ggml(random, packed::ggml_type::q4_k, 4, 256);
  const auto mx_blocks = std::get<mxfp4_blocks_view>(ggml(random, packed::ggml_type::mxfp4, 4, 64).view());
  const auto refuses = [](auto view, auto change, std::string_view part) {
    change(view);
    return refused([&] { static_cast<void>(operator_of(view)); }, part);
  };
  const auto a = std::get<fp8_view>(f8.view());
  CHECK(refuses(a, [](auto& v) { v.rows = -1; }, "[F = -1, D = 40] in blocks of [2, 16]"));
  CHECK(refuses(a, [](auto& v) { v.cols = -1; }, "[F = 4, D = -1]"));
  CHECK(refuses(a, [](auto& v) { v.block_rows = 0; }, "blocks of [0, 16]"));
  CHECK(refuses(a, [](auto& v) { v.block_cols = 0; }, "blocks of [2, 0]"));
  CHECK(refuses(a, [](auto& v) { v.row_bytes = 39; }, "codes: rows of 40 bytes, 39 bytes apart"));
  CHECK(refuses(a, [](auto& v) { v.scale_row_bytes = 11; }, "scales: rows of 12 bytes, 11 bytes apart"));
  CHECK(refuses(a, [](auto& v) { v.codes = nullptr; }, "codes: null data for 4 rows of 40 bytes"));
  CHECK(refuses(a, [](auto& v) { v.scales = nullptr; }, "scales: null data for 2 rows of 12 bytes"));
  CHECK(refuses(a, [](auto& v) { v.scale_type = static_cast<fp8_scale>(9); }, "fp8_scale: 9"));
  CHECK(refuses(
      a, [](auto& v) { v.row_bytes = std::numeric_limits<index_t>::max(); },
      "4 rows, 9223372036854775807 bytes"));
  const auto m = std::get<mxfp4_view>(mx.view());
  CHECK(refuses(m, [](auto& v) { v.cols = 63; }, "D = 63] in blocks of 32 columns"));
  CHECK(refuses(m, [](auto& v) { v.rows = -1; }, "[F = -1"));
  CHECK(refuses(m, [](auto& v) { v.cols = -32; }, "D = -32"));
  CHECK(refuses(m, [](auto& v) { v.row_bytes = 31; }, "codes: rows of 32 bytes, 31"));
  CHECK(refuses(m, [](auto& v) { v.scale_row_bytes = 1; }, "scales: rows of 2 bytes, 1"));
  CHECK(refuses(m, [](auto& v) { v.scales = nullptr; }, "scales: null data"));
  CHECK(refuses(
      std::get<q8_0_view>(q8.view()), [](auto& v) { v.cols = 48; }, "D = 48] in blocks of 32 columns"));
  CHECK(refuses(std::get<q8_0_view>(q8.view()), [](auto& v) { v.row_bytes = 67; }, "rows of 68 bytes, 67"));
  CHECK(refuses(std::get<q4_k_view>(q4.view()), [](auto& v) { v.cols = 128; }, "in blocks of 256 columns"));
  CHECK(refuses(mx_blocks, [](auto& v) { v.cols = 48; }, "D = 48] in blocks of 32 columns"));
  CHECK(refuses(mx_blocks, [](auto& v) { v.row_bytes = 33; }, "rows of 34 bytes, 33"));
  CHECK(refuses(mx_blocks, [](auto& v) { v.blocks = nullptr; }, "gram(mxfp4_blocks_view): null data"));
  CHECK(
      refuses(std::get<q4_k_view>(q4.view()), [](auto& v) { v.row_bytes = 143; }, "rows of 144 bytes, 143"));

  const auto op = operator_of(a);
  floats x = filled(41);
  floats u = filled(41);
  const vector_view<const float> in(x.data(), 40);
  const vector_view<float> out(u.data(), 40);
  CHECK(refused([&] { op.apply(vector_view<const float>(x), out); },
                "apply: A is [F = 4, D = 40], but the vectors have 41"));
  CHECK(refused([&] { op.apply(in, vector_view<float>(u)); }, "have 40 and 41 elements, not 40 and 40"));
  CHECK(refused([&] { op.apply(in, vector_view<float>(x.data() + 1, 40)); },
                "apply: input and output overlap"));
  CHECK(refused([&] { op.apply_scaled(in, vector_view<float>(u)); }, "apply_scaled: A is"));
  CHECK(refused([&] { op.project(in, out); }, "project: A is"));
  CHECK(refused([&] { op.lift(in, out); }, "lift: A is"));
}

TEST_CASE("router_rows over packed experts are those over rows decoded to double") {
  random_source random(13);
  const auto rows_by = [&](const auto& operators, auto zero, index_t n, index_t d, const floats& router,
                           std::vector<status>& statuses) {
    using S = decltype(zero);
    floats rows = filled(n * d);
    std::vector<S> workspace(static_cast<std::size_t>(router_rows_workspace(n, d)));
    router_by_products<S> told;
    told.statuses = statuses;
    router_rows(operators, row_major(router.data(), n, d), row_major(rows.data(), n, d), router_options{},
                vector_view<S>(workspace), told);
    return rows;
  };
  for (const index_t least : {index_t{124}, index_t{2}}) {  // the second: squares below the range of float
    const std::vector<problem> experts{mxfp4(random, 7, 64, least, least + 4),
                                       mxfp4(random, 9, 64, least, least + 4),
                                       mxfp4(random, 1, 64, least, least + 4)};
    const auto n = static_cast<index_t>(experts.size());
    const floats router = random_vector<float>(random, n * 64);
    std::vector<status> statuses(experts.size());
    std::vector<status> expected_statuses(experts.size());
    std::vector<double> scratch(64);
    const auto at = [&](index_t i) -> const problem& { return experts[static_cast<std::size_t>(i)]; };
    const floats rows = rows_by([&](index_t i) { return operator_of(std::get<mxfp4_view>(at(i).view())); },
                                0.0F, n, 64, router, statuses);
    const floats expected =
        rows_by([&](index_t i) { return gram_of_rows(at(i).matrix(), std::span(scratch)); }, 0.0, n, 64,
                router, expected_statuses);
    CHECK(distance(rows, expected) <= tolerance<float>.identity * norm(expected));
    for (std::size_t i = 0; i < experts.size(); ++i) {
      CHECK(statuses[i] == status::ok);
      CHECK(expected_statuses[i] == status::ok);
    }
  }
}

TEST_CASE("what has no view goes row by row") {
  random_source random(14);
  const odd_bytes bytes = random_bytes(random, 4096);
  const auto first = [&](index_t n) { return bytes.span().first(static_cast<std::size_t>(n)); };
  using packed::scale_type;
  const packed::scales one(scale_type::f32, first(4), 1, 1);
  CHECK(packed::view_of(packed::fp8_matrix(first(64), 2, 32, one, 2, 32)).has_value());
  using enum packed::fp8_type;
  for (const auto type : {e5m2, e4m3fnuz, e5m2fnuz}) {
    CHECK_FALSE(packed::view_of(packed::fp8_matrix(first(64), 2, 32, one, 2, 32, type)).has_value());
  }
  CHECK_FALSE(packed::view_of(packed::fp8_matrix(first(64), 2, 32,
                                                 packed::scales(scale_type::e4m3, first(1), 1, 1), 2, 32))
                  .has_value());
  CHECK_FALSE(
      packed::view_of(packed::fp8_matrix(first(64), 2, 32, packed::scales(scale_type::one, {}, 1, 1), 2, 32))
          .has_value());
  const auto fp4 = [&](scale_type type, index_t cols, index_t group, double global) {
    const index_t groups = packed::parts_of(cols, group);
    const packed::scales s(type, first(2 * groups * packed::size_of(type)), 2, groups);
    return packed::view_of(packed::fp4_matrix(first(cols), 2, cols, s, group, global)).has_value();
  };
  CHECK(fp4(scale_type::e8m0, 64, 32, 1));
  CHECK_FALSE(fp4(scale_type::e8m0, 64, 16, 1));
  CHECK_FALSE(fp4(scale_type::e4m3, 64, 32, 1));
  CHECK_FALSE(fp4(scale_type::e8m0, 48, 32, 1));
  CHECK_FALSE(fp4(scale_type::e8m0, 64, 32, 0.5));
  using packed::ggml_type;
  CHECK(packed::view_of(packed::ggml_matrix(ggml_type::q8_0, first(68), 2, 32)).has_value());
  CHECK_FALSE(packed::view_of(packed::ggml_matrix(ggml_type::q8_0, first(68), 2, 32, 2.0F)).has_value());
  CHECK(packed::view_of(packed::ggml_matrix(ggml_type::mxfp4, first(34), 2, 32)).has_value());
  CHECK_FALSE(packed::view_of(packed::ggml_matrix(ggml_type::q4_0, first(36), 2, 32)).has_value());
  const packed::any_matrix any(packed::int8_matrix(first(64), 2, 32, one));
  CHECK_FALSE(packed::view_of(any).has_value());
}
