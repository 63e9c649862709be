// A result as a line and back: every bit.
#include <expert_lines.hpp>

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <random>

namespace test_expert_lines {

namespace {

using namespace verify;
using mpi_router::status;

std::uint64_t bits(double x) { return std::bit_cast<std::uint64_t>(x); }

void check_same(const expert_result& a, const expert_result& b) {
  CHECK(a.expert == b.expert);
  CHECK(a.state == b.state);
  CHECK(a.sigma_2_from == b.sigma_2_from);
  CHECK(a.certificate == b.certificate);
  CHECK(a.steps == b.steps);
  for (const auto number : {&expert_result::sigma_1, &expert_result::sigma_2, &expert_result::cosine_stored,
                            &expert_result::cosine_step, &expert_result::lambda_stored,
                            &expert_result::lambda_step, &expert_result::rayleigh, &expert_result::residual,
                            &expert_result::angle, &expert_result::angle_bound}) {
    CHECK(bits(a.*number) == bits(b.*number));
  }
  REQUIRE(a.trace.size() == b.trace.size());
  for (std::size_t i = 0; i < a.trace.size(); ++i) {
    CHECK(a.trace[i].step == b.trace[i].step);
    CHECK(bits(a.trace[i].rayleigh) == bits(b.trace[i].rayleigh));
    CHECK(bits(a.trace[i].residual) == bits(b.trace[i].residual));
    CHECK(bits(a.trace[i].angle) == bits(b.trace[i].angle));
  }
}

void check_comes_back(const placed_result& one) {
  const auto line = to_line(one);
  CAPTURE(line);
  CHECK(line.find('\n') == line.npos);
  const auto back = from_line(line);
  REQUIRE(back.has_value());
  CHECK(back->layer == one.layer);
  check_same(back->result, one.result);
  CHECK(to_line(*back) == line);
}

/// A NaN is its sign, as all that prints it sees: the payload may go.
double any_double(std::mt19937_64& random) {
  const double x = std::bit_cast<double>(random());
  return std::isnan(x) ? std::copysign(unknown, x) : x;
}

}  // namespace

TEST_CASE("what is not known stays unknown") { check_comes_back({}); }

TEST_CASE("doubles of any bits come back, in every member and in the trace") {
  std::mt19937_64 random(1);
  const std::vector<double> odd{0.0,
                                -0.0,
                                1.0,
                                0.1,
                                5e-324,
                                2.2250738585072011e-308,
                                1.7976931348623157e308,
                                9007199254740993.0,
                                1e22,
                                HUGE_VAL,
                                -HUGE_VAL,
                                unknown,
                                -unknown};
  for (std::size_t round = 0; round < 500; ++round) {
    const auto next = [&] { return round < odd.size() ? odd[round] : any_double(random); };
    placed_result one{round, {}};
    auto& e = one.result;
    e.expert = static_cast<index_t>(2 * round + 1);
    for (const auto number : {&expert_result::sigma_1, &expert_result::sigma_2, &expert_result::cosine_stored,
                              &expert_result::cosine_step, &expert_result::lambda_stored,
                              &expert_result::lambda_step, &expert_result::rayleigh, &expert_result::residual,
                              &expert_result::angle, &expert_result::angle_bound}) {
      e.*number = next();
    }
    e.trace.assign(round % 3, {7, next(), next(), next()});
    check_comes_back(one);
  }
}

TEST_CASE("every word that a result may hold") {
  for (const auto state : {status::ok, status::zero_row, status::zero_image, status::non_finite,
                           status::masked, status::closed_expert}) {
    for (const char* certificate : {"none", "heuristic", "probabilistic", "rigorous"}) {
      for (const char* from : {"none", "svd", "ritz (estimate)"}) {
        for (const auto steps : {std::optional<index_t>(), {0}, {123456789}}) {
          placed_result one{3, {}};
          one.result.state = state;
          one.result.certificate = certificate;
          one.result.sigma_2_from = from;
          one.result.steps = steps;
          check_comes_back(one);
        }
      }
    }
  }
}

TEST_CASE("what is no such line is none") {
  const auto line = to_line({});
  CHECK(from_line(line).has_value());
  for (std::size_t length = 0; length < line.size(); ++length) {
    CHECK_FALSE(from_line(line.substr(0, length)).has_value());
  }
  const auto with = [&](std::string_view what, std::string_view by) {
    auto text = line;
    REQUIRE(text.find(what) != text.npos);
    return from_line(text.replace(text.find(what), what.size(), by)).has_value();
  };
  CHECK(with("\"sigma1\":null", "\"sigma1\":1"));
  CHECK_FALSE(with("\"sigma1\":null", "\"sigma1\":\"word\""));
  CHECK_FALSE(with("\"sigma1\":null", "\"sigma1\":true"));
  CHECK_FALSE(with("\"sigma1\":null", "\"sigma\":1"));
  CHECK_FALSE(with("\"ok\"", "\"okay\""));
  CHECK_FALSE(with("\"layer\":0", "\"layer\":-1"));
  CHECK_FALSE(with("\"layer\":0", "\"layer\":0.5"));
  CHECK_FALSE(with("\"layer\":0", "\"layer\":\"0\""));
  CHECK_FALSE(with("\"steps\":null", "\"steps\":[]"));
  CHECK_FALSE(from_line("[]").has_value());
  CHECK_FALSE(from_line("").has_value());
  CHECK_FALSE(from_line(line + line).has_value());
}

}  // namespace test_expert_lines
