// What is one longer than it should be is refused like what is one short, by its words, with nothing written:
// memory that holds more than is asked for hides a mistake of the caller's.
#include <mpi_router/router/balance.hpp>
#include <mpi_router/router/dispatch.hpp>
#include <mpi_router/router/gating_vjp.hpp>
#include <mpi_router/router/load.hpp>
#include <mpi_router/router/logits.hpp>
#include <mpi_router/router/row_images.hpp>
#include <mpi_router/router/statistics.hpp>
#include <mpi_router/router/z_loss.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>

#include <algorithm>
#include <string>
#include <vector>

namespace test_sizes {

#if MPIROUTER_HAS_EXCEPTIONS

using namespace mpi_router;
using namespace test_support;

namespace {

constexpr index_t T = 8, N = 8, K = 2;

/// Arguments of the gate, with room for more than is used.
struct gate_arguments {
  std::vector<double> logits = std::vector<double>(T * N), weights = std::vector<double>(2 * T * N, 7.0),
                      gradient = std::vector<double>(2 * T * N, 7.0), work = std::vector<double>(10000);
  std::vector<expert_id> ids = std::vector<expert_id>(2 * T * K);
  std::vector<status> statuses = std::vector<status>(2 * T, status::ok);

  gate_arguments() {
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<expert_id>(i % K);
  }
  [[nodiscard]] matrix_view<const double> x() const { return row_major(logits.data(), T, N); }
  matrix_view<double> w(index_t rows, index_t cols) { return row_major(weights.data(), rows, cols); }
  matrix_view<double> g() { return row_major(gradient.data(), T, N); }
  std::span<expert_id> chosen(index_t size) { return std::span(ids).first(static_cast<std::size_t>(size)); }
  std::span<status> of(index_t size) { return std::span(statuses).first(static_cast<std::size_t>(size)); }
  vector_view<double> workspace() { return work; }

  [[nodiscard]] bool is_untouched() const {
    const auto is_seven = [](double v) { return v == 7; };
    return std::all_of(weights.begin(), weights.end(), is_seven) &&
           std::all_of(gradient.begin(), gradient.end(), is_seven);
  }
};

}  // namespace

TEST_CASE("the gate, and what is given to it, of one token or one expert more or less") {
  gate_arguments a;
  for (const index_t n : {T * K - 1, T * K + 1, T * K + K}) {
    const std::string text = std::to_string(n) + " expert ids, not T · K = ";
    CHECK(refused([&] { gate<double>(a.x(), {}, {}, {a.w(T, K), a.chosen(n)}, a.workspace()); },
                  "gate: " + text));
    CHECK(refused([&] { gate_weights<double>(a.x(), {}, a.chosen(n), a.w(T, K), a.workspace()); },
                  "gate_weights: " + text));
    CHECK(refused(
        [&] {
          gate_vjp<double>(a.x(), {}, a.chosen(n), a.w(T, K), a.g(), gradient_mode::write, a.workspace());
        },
        "gate_vjp: " + text));
  }
  for (const auto& [rows, cols] :
       {std::pair<index_t, index_t>{T - 1, K}, {T + 1, K}, {T, K - 1}, {T, K + 1}}) {
    const std::string text =
        " are [" + std::to_string(rows) + ", " + std::to_string(cols) + "], not [T = 8, K = 2]";
    const auto w = a.w(rows, cols);
    CHECK(refused([&] { gate<double>(a.x(), {}, {}, {w, a.chosen(T * K)}, a.workspace()); },
                  "gate: the weights" + text));
    CHECK(refused([&] { gate_weights<double>(a.x(), {}, a.chosen(T * K), w, a.workspace()); },
                  "gate_weights: the weights" + text));
    CHECK(refused(
        [&] { gate_vjp<double>(a.x(), {}, a.chosen(T * K), w, a.g(), gradient_mode::write, a.workspace()); },
        "gate_vjp: the gradients of the weights" + text));
  }
  CHECK(a.is_untouched());
}

TEST_CASE("statuses of one token more or less, and an expert that a token has twice") {
  gate_arguments a;
  const auto ids = a.chosen(T * K);
  std::vector<index_t> load(N, 1);
  const auto f = score_function::softmax;
  for (const index_t n : {T - 1, T + 1}) {
    const auto s = a.of(n);
    const std::string text = std::to_string(n) + " statuses for 8 tokens";
    CHECK(refused([&] { gate<double>(a.x(), {}, {}, {a.w(T, K), ids, s}, a.workspace()); }, "gate: " + text));
    CHECK(refused([&] { gate<double>(a.x(), {}, {}, {a.w(T, K), ids}, a.workspace(), {}, s); },
                  "gate: " + text));
    CHECK(refused([&] { gate_weights<double>(a.x(), {}, ids, a.w(T, K), a.workspace(), {}, s); },
                  "gate_weights: " + text));
    CHECK(refused([&] { gate_weights<double>(a.x(), {}, ids, a.w(T, K), a.workspace(), {}, {}, s); },
                  "gate_weights: " + text));
    CHECK(refused(
        [&] {
          gate_vjp<double>(a.x(), {}, ids, a.w(T, K), a.g(), gradient_mode::write, a.workspace(), {}, s);
        },
        "gate_vjp: " + text));
    CHECK(refused([&] { (void)balance_loss<double>(a.x(), f, ids, K, T, a.workspace(), {}, s); },
                  "balance_loss: " + text));
    CHECK(refused(
        [&] {
          balance_loss_vjp<double>(a.x(), f, ids, K, T, 1.0, a.g(), gradient_mode::write, a.workspace(), {},
                                   s);
        },
        "balance_loss_vjp: " + text));
    CHECK(refused([&] { (void)global_balance_loss<double>(a.x(), f, load, a.workspace(), {}, s); },
                  "global_balance_loss: " + text));
    CHECK(refused(
        [&] {
          global_balance_loss_vjp<double>(a.x(), f, load, 1.0, a.g(), gradient_mode::write, a.workspace(), {},
                                          s);
        },
        "global_balance_loss_vjp: " + text));
    CHECK(refused([&] { (void)z_loss<double>(a.x(), a.workspace(), {}, s); }, "z_loss: " + text));
    CHECK(refused([&] { z_loss_vjp<double>(a.x(), 1.0, a.g(), gradient_mode::write, {}, s); },
                  "z_loss_vjp: " + text));
  }
  ids[6] = ids[7] = 5;
  const std::string twice = "token 3 has expert 5 twice";
  CHECK(refused([&] { gate_weights<double>(a.x(), {}, ids, a.w(T, K), a.workspace()); },
                "gate_weights: " + twice));
  CHECK(refused(
      [&] { gate_vjp<double>(a.x(), {}, ids, a.w(T, K), a.g(), gradient_mode::write, a.workspace()); },
      "gate_vjp: " + twice));
  CHECK(a.is_untouched());
}

TEST_CASE("tokens wider or narrower than rows, more loads than biases, more energies than experts") {
  std::vector<double> memory(512), other(512, 7.0);
  const auto at = [&](index_t first, index_t rows, index_t cols) {
    return row_major(static_cast<const double*>(memory.data()) + first, rows, cols);
  };
  const auto to = [&](index_t first, index_t rows, index_t cols) {
    return row_major(other.data() + first, rows, cols);
  };
  for (const index_t wide : {4, 6}) {
    const std::string text = "tokens [3, " + std::to_string(wide) + "], rows [4, 5]";
    CHECK(
        refused([&] { router_logits(at(0, 3, wide), at(32, 4, 5), to(0, 3, 4)); }, "router_logits: " + text));
    CHECK(refused(
        [&] {
          router_logits_vjp(at(0, 3, wide), at(32, 4, 5), at(64, 3, 4), to(0, 3, wide), to(32, 4, 5),
                            vector_view<double>(), gradient_mode::write);
        },
        "router_logits_vjp: " + text));
  }
  const std::vector<index_t> loads{3, 1, 2};
  const vector_view<double> bias(other.data(), 2);
  CHECK(refused([&] { update_expert_bias<double>(loads, 1.0, bias); }, "loads of 3 experts, biases of 2"));
  for (const index_t n : {1, 3}) {
    CHECK(refused(
        [&] {
          images_of_rows(experts_nfd(static_cast<const double*>(memory.data()), {2, 3, 4}), at(100, 2, 4),
                         to(0, 2, 4), vector_view<double>(other.data() + 64, n),
                         vector_view<double>(memory.data() + 200, 300));
        },
        "images_of_rows: there are " + std::to_string(n) + " energies for 2 experts"));
  }
  CHECK(std::all_of(other.begin(), other.end(), [](double v) { return v == 7; }));
}

TEST_CASE("no tokens in sequences of no length have no loss, and one token in them is refused") {
  std::vector<double> work(10000), logits(N);
  const auto none = row_major(static_cast<const double*>(logits.data()), 0, N);
  const auto loss = [&](const matrix_view<const double>& x, std::span<const expert_id> ids) {
    return balance_loss<double>(x, score_function::softmax, ids, K, 0, vector_view<double>(work));
  };
  CHECK(loss(none, {}) == 0);
  const std::vector<expert_id> ids{0, 1};
  CHECK(refused([&] { (void)loss(row_major(static_cast<const double*>(logits.data()), 1, N), ids); },
                "1 tokens do not fall into sequences of length 0"));
}

#endif

TEST_CASE("the least and the largest of statistics that are merged, whichever has them") {
  mpi_router::running_statistics inner, outer;
  for (const double x : {2.0, 3.0}) inner.add(x);
  for (const double x : {-1.0, 7.0}) outer.add(x);
  auto one = inner, two = outer;
  one.merge(outer);
  two.merge(inner);
  for (const auto& all : {one, two}) {
    CHECK(all.min == -1);
    CHECK(all.max == 7);
    CHECK(all.count == 4);
    CHECK(all.mean == 2.75);
  }
}

}  // namespace test_sizes
