// The direction of weights that stay packed: searched by kernels that decode in registers, proven by the
// exact products of codes and scales. It is that of the same weights decoded to double.
#include <mpi_router/backend/packed.hpp>
#include <mpi_router/backend/simd.hpp>
#include <mpi_router/io/packed/views.hpp>
#include <mpi_router/verify/expert_direction.hpp>
#include <mpi_router/verify/gram_in_double.hpp>

#include <doctest/doctest.h>
#include <support/random.hpp>

#include <span>

namespace test_packed_direction {
using namespace mpi_router;

namespace {

/// FP8 in blocks, and their scales.
struct packed_expert {
  index_t rows;
  index_t cols;
  std::vector<std::byte> codes;
  std::vector<float> scales;

  /// Random codes of magnitudes about one, the first columns alike in all rows: a clear direction. Scales of
  /// blocks of 128 by 128, times `scale`.
  packed_expert(index_t f, index_t d, float scale) : rows(f), cols(d) {
    test_support::random_source random(70);
    for (index_t i = 0; i < f * d; ++i) {
      const index_t magnitude = i % d < 40 ? 0x48 : random.integer(0x20, 0x40);
      codes.push_back(static_cast<std::byte>(magnitude + (i % d < 40 ? 0 : 128 * random.integer(0, 1))));
    }
    for (index_t i = 0; i < packed::parts_of(f, 128) * packed::parts_of(d, 128); ++i) {
      scales.push_back(scale * static_cast<float>(1 + 0.1 * random.uniform()));
    }
  }
  [[nodiscard]] packed::any_matrix matrix() const {
    return packed::fp8_matrix(std::span(codes), rows, cols,
                              packed::scales(packed::scale_type::f32, std::as_bytes(std::span(scales)),
                                             packed::parts_of(rows, 128), packed::parts_of(cols, 128)),
                              128, 128);
  }
  [[nodiscard]] gate_matrix in_double() const {
    gate_matrix a(rows, cols);
    matrix().load_all(a.data());
    return a;
  }
  [[nodiscard]] auto in_registers() const {
    return gram(std::get<fp8_view>(packed::view_of(matrix()).value()), simd{});
  }
  /// Proven by panels of decoded rows or, where that is to be had, by kernels that decode in registers.
  [[nodiscard]] expert_direction direction(const Eigen::VectorXd& row, bool by_panels = false) const {
    auto fast = in_registers();
    if (by_panels) {
      auto op = gram_in_double(matrix(), simd{});
      return find_expert_direction(op, fast, view(row));
    }
    auto op = gram_in_double(matrix(), fast, simd{});
    return find_expert_direction(op, fast, view(row));
  }
};

Eigen::VectorXd some_row(index_t size) {
  test_support::random_source random(71);
  Eigen::VectorXd row(size);
  for (auto& x : row) x = random.normal();
  return row;
}

}  // namespace

TEST_CASE("the images in double are those of the decoded matrix") {
  for (const index_t f : {index_t{1}, index_t{16}, index_t{37}}) {
    const packed_expert expert(f, 200, 0.25F);
    const auto a = expert.in_double();
    const auto exact = gram(a, reference{});
    const auto is_exact = [&](auto op) {
      CHECK(op.dimension() == 200);
      CHECK(op.ffn_dim() == f);
      const Eigen::MatrixXd x = some_row(600).reshaped(200, 3);
      const Eigen::MatrixXd u = op.images(x);
      Eigen::MatrixXd pair(200, 2);
      const auto energies =
          op.apply_two({view(x.col(0)), view(x.col(1))}, {view(pair.col(0)), view(pair.col(1))});
      for (index_t k = 0; k < 3; ++k) {
        Eigen::VectorXd want(200);
        Eigen::VectorXd got(200);
        const double energy = exact.apply(view(x.col(k)), view(want));
        CHECK(op.apply(view(x.col(k)), view(got)) == doctest::Approx(energy).epsilon(1e-13));
        CHECK((got - want).norm() <= 1e-13 * want.norm());
        CHECK(u.col(k) == got);
        if (k < 2) {
          CHECK(pair.col(k) == got);
          CHECK(energies[static_cast<std::size_t>(k)] == doctest::Approx(energy).epsilon(1e-13));
        }
        const auto scaled = op.apply_scaled(view(x.col(k)), view(got));
        CHECK(std::ldexp(scaled.energy, scaled.energy_exponent) == doctest::Approx(energy).epsilon(1e-13));
        CHECK((std::ldexp(1, scaled.image_exponent) * got - want).norm() <= 1e-13 * want.norm());
      }
    };
    is_exact(gram_in_double(expert.matrix(), simd{}));
    is_exact(gram_in_double(expert.matrix(), expert.in_registers(), simd{}));
  }
}

TEST_CASE("found packed and found decoded: one direction, one certificate") {
  const auto row = some_row(700);
  for (const float scale : {1.0F, 0x1p-70F, 0x1p60F}) {  // the others: squares that no float holds
    const packed_expert expert(600, 700, scale);
    const auto a = expert.in_double();
    const auto decoded = find_expert_direction(view(a), view(row), direction_source::certificate, simd{});
    CAPTURE(scale);
    for (const bool by_panels : {false, true}) {
      const auto packed = expert.direction(row, by_panels);
      REQUIRE(packed.v.size() == 700);
      CHECK(packed.found.proof.label == certainty::probabilistic);
      CHECK(packed.found.proof.label == decoded.found.proof.label);
      CHECK(packed.uncertainty == packed.found.proof.angle_bound);
      CHECK(packed.sigma_1() == doctest::Approx(decoded.sigma_1()).epsilon(1e-12));
      CHECK(packed.sigma_2() == doctest::Approx(decoded.sigma_2()).epsilon(1e-5));
      CHECK(packed.angle(view(decoded.v)) <= packed.uncertainty + decoded.uncertainty + 1e-12);
      CHECK(packed.forecast.steps == decoded.forecast.steps);
      CHECK(!packed.spectrum);
    }
  }
}

TEST_CASE("packed weights with a NaN, and none but zeros") {
  const auto row = some_row(600);
  packed_expert expert(520, 600, 1);
  expert.codes[5000] = std::byte{0xff};
  CHECK(expert.direction(row).found.at.state == status::non_finite);
  for (auto& code : expert.codes) code = std::byte{0x80};
  const auto none = expert.direction(row);
  CHECK(none.v.size() == 0);
  CHECK(none.found.at.state == status::zero_image);
}

}  // namespace test_packed_direction
