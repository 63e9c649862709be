// What the gate, its backward and the losses refuse, and by which words: sizes one short, memory that meets.
#include <mpi_router/router/balance.hpp>
#include <mpi_router/router/dispatch.hpp>
#include <mpi_router/router/gating_vjp.hpp>
#include <mpi_router/router/z_loss.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

namespace test_gate_refusals {

#if MPIROUTER_HAS_EXCEPTIONS

using namespace mpi_router;
using namespace test_support;

namespace {

constexpr index_t T = 8, N = 8, D = 8, K = 2;

/// Memory for the arguments of a call, each in a place of its own until one is laid over another.
class arguments {
 public:
  /// `size` elements of E named so, at the same place in every call.
  template <class E>
  std::span<E> at(const std::string& name, index_t size) {
    if (!places_.contains(name)) places_.emplace(name, places_.size());
    const std::size_t place = moved_ == name ? places_.at(onto_) : places_.at(name);
    return {reinterpret_cast<E*>(memory_.data() + place * room), static_cast<std::size_t>(size)};
  }
  auto matrix(const std::string& name, index_t rows, index_t cols) {
    return row_major(at<double>(name, rows * cols).data(), rows, cols);
  }
  vector_view<double> vector(const std::string& name, index_t size) { return at<double>(name, size); }

  /// What call() says with one argument laid over another, and whether it left all memory as it was.
  template <class Call>
  std::string said(const std::string& moved, const std::string& onto, const Call& call) {
    (void)message_of(call);  // every name has its place
    moved_ = moved;
    onto_ = onto;
    std::fill(memory_.begin(), memory_.end(), std::byte{0});
    const std::string message = message_of(call);
    moved_.clear();
    CHECK(std::all_of(memory_.begin(), memory_.end(), [](std::byte b) { return b == std::byte{0}; }));
    return message;
  }

 private:
  static constexpr std::size_t room = 65536;
  std::vector<std::byte> memory_ = std::vector<std::byte>(24 * room);
  std::map<std::string, std::size_t> places_;
  std::string moved_, onto_;
};

/// Every pair of something written and something else, one laid over the other, is refused by name.
template <class Call>
void check_apart(arguments& a, const std::string& what, const std::vector<std::string>& written,
                 const std::vector<std::string>& read, const Call& call) {
  CHECK(message_of(call).empty());
  std::vector<std::string> others = read;
  for (const std::string& one : written) {
    for (const std::string& other : others) {
      const std::string message = a.said(one, other, call);
      const bool is_said = contains(message, what + ": ") && contains(message, one) &&
                           contains(message, other) && contains(message, "overlap");
      CHECK_MESSAGE(is_said, what << ": " << one << " over " << other << ": " << message);
    }
    others.push_back(one);
  }
}

}  // namespace

TEST_CASE("the gate and given experts keep what they write apart") {
  arguments a;
  const index_t size = gating_workspace(T, N);
  const std::vector<std::string> written{"the weights", "the expert ids", "the statuses", "the workspace"};
  check_apart(a, "gate", written, {"the logits", "the selection bias", "the mask"}, [&] {
    gate<double>(a.matrix("the logits", T, N), {}, a.vector("the selection bias", N),
                 {a.matrix("the weights", T, K), a.at<expert_id>("the expert ids", T * K),
                  a.at<status>("the statuses", T).subspan(0)},
                 a.vector("the workspace", size), {}, a.at<status>("the mask", T + 1).last(T));
  });
  check_apart(
      a, "route", {"the logits", "the weights", "the expert ids", "the statuses", "the workspace"},
      {"the tokens", "the rows", "the bias of the logits", "the selection bias", "the mask"}, [&] {
        route(
            a.matrix("the tokens", T, D), a.matrix("the rows", N, D), {},
            {.logits = a.vector("the bias of the logits", N), .selection = a.vector("the selection bias", N)},
            a.matrix("the logits", T, N),
            gate_output<double>{a.matrix("the weights", T, K), a.at<expert_id>("the expert ids", T * K),
                                a.at<status>("the statuses", T)},
            a.vector("the workspace", size), {}, plain_products{}, a.at<status>("the mask", T + 1).last(T));
      });
}

TEST_CASE("given experts and the backward of the gate keep what they write apart") {
  arguments a;
  const index_t size = gating_workspace(T, N);
  check_apart(a, "gate_weights", {"the weights", "the statuses", "the workspace"},
              {"the logits", "the selection bias", "the expert ids", "the mask"}, [&] {
                gate_weights<double>(a.matrix("the logits", T, N), {.top_k = 1},
                                     a.at<expert_id>("the expert ids", T), a.matrix("the weights", T, 1),
                                     a.vector("the workspace", size), {},
                                     a.at<status>("the mask", T + 1).last(T), a.at<status>("the statuses", T),
                                     a.vector("the selection bias", N));
              });
  check_apart(
      a, "gate_vjp", {"the gradient to the logits", "the workspace"},
      {"the logits", "the gradients of the weights", "the selection bias", "the expert ids", "the statuses"},
      [&] {
        gate_vjp<double>(a.matrix("the logits", T, N), {.top_k = 1}, a.at<expert_id>("the expert ids", T),
                         a.matrix("the gradients of the weights", T, 1),
                         a.matrix("the gradient to the logits", T, N), gradient_mode::write,
                         a.vector("the workspace", size), {}, a.at<status>("the statuses", T),
                         a.vector("the selection bias", N));
      });
}

TEST_CASE("the losses keep their workspaces and gradients apart from all that they read") {
  arguments a;
  const auto f = score_function::sigmoid;
  const auto x = [&] { return a.matrix("the logits", T, N); };
  const auto g = [&] { return a.matrix("the gradient to the logits", T, N); };
  const auto ids = [&] { return a.at<expert_id>("the expert ids", T * K); };
  const auto load = [&] { return a.at<index_t>("the load", N); };
  const auto mask = [&] { return a.at<status>("the statuses", T); };
  const auto work = [&](index_t length) {
    return a.vector("the workspace", balance_workspace(T, N, length));
  };
  const std::string gradient = "the gradient to the logits";
  check_apart(a, "balance_loss", {"the workspace"}, {"the logits", "the expert ids", "the statuses"},
              [&] { (void)balance_loss<double>(x(), f, ids(), K, 4, work(4), {}, mask()); });
  check_apart(a, "balance_loss_vjp", {"the workspace", gradient},
              {"the logits", "the expert ids", "the statuses"}, [&] {
                balance_loss_vjp<double>(x(), f, ids(), K, 4, 1.0, g(), gradient_mode::write, work(4), {},
                                         mask());
              });
  check_apart(a, "global_balance_loss", {"the workspace"}, {"the logits", "the load", "the statuses"},
              [&] { (void)global_balance_loss<double>(x(), f, load(), work(T), {}, mask()); });
  check_apart(a, "global_balance_loss_vjp", {"the workspace", gradient},
              {"the logits", "the load", "the statuses"}, [&] {
                global_balance_loss_vjp<double>(x(), f, load(), 1.0, g(), gradient_mode::write, work(T), {},
                                                mask());
              });
  check_apart(a, "z_loss", {"the workspace"}, {"the logits", "the statuses"},
              [&] { (void)z_loss<double>(x(), work(T), {}, mask()); });
  check_apart(a, "z_loss_vjp", {gradient}, {"the logits", "the statuses"},
              [&] { z_loss_vjp<double>(x(), 1.0, g(), gradient_mode::write, {}, mask()); });
}

TEST_CASE("logits and their backward, loads and lists keep what they write apart") {
  arguments a;
  const auto tokens = [&] { return a.matrix("the tokens", T, D); };
  const auto rows = [&] { return a.matrix("the rows", N, D); };
  check_apart(a, "router_logits", {"the logits"}, {"the tokens", "the rows", "the bias of the logits"}, [&] {
    router_logits(tokens(), rows(), a.vector("the bias of the logits", N), a.matrix("the logits", T, N));
  });
  check_apart(a, "router_logits_vjp",
              {"the gradient to the tokens", "the gradient to the rows", "the gradient to the bias"},
              {"the tokens", "the rows", "the gradient of the logits"}, [&] {
                router_logits_vjp(tokens(), rows(), a.matrix("the gradient of the logits", T, N),
                                  a.matrix("the gradient to the tokens", T, D),
                                  a.matrix("the gradient to the rows", N, D),
                                  a.vector("the gradient to the bias", N), gradient_mode::write);
              });
  const auto ids = [&] { return a.at<expert_id>("the expert ids", T * K); };
  check_apart(a, "build_dispatch", {"the offsets", "the tokens", "the entries"},
              {"the expert ids", "the statuses"}, [&] {
                build_dispatch(ids(), K, a.at<status>("the statuses", T),
                               {a.at<index_t>("the offsets", N + 1), a.at<index_t>("the tokens", T * K),
                                a.at<index_t>("the entries", T * K)});
              });
  arguments b;  // counts are added: what is read first must be a status and an id
  check_apart(b, "count_load", {"the load"}, {"the expert ids", "the statuses"}, [&] {
    count_load(b.at<expert_id>("the expert ids", T * K), K, b.at<status>("the statuses", T),
               b.at<index_t>("the load", N));
  });
}

TEST_CASE("settings that do not fit are refused, each by its reason") {
  const auto said = [](const gating_options& o, index_t n = 16) {
    return message_of([&] { core::check_gating("gate", o, n); });
  };
  CHECK(said({.top_k = 8, .n_group = 4, .topk_group = 2}).empty());
  CHECK(contains(said({.top_k = 9, .n_group = 4, .topk_group = 2}),
                 "top_k = 9 experts cannot come from 2 groups of 4"));
  CHECK(contains(said({.top_k = 17}), "top_k is 17 for 16 experts"));
  CHECK(contains(said({.top_k = 0}), "top_k is 0 for 16 experts"));
  CHECK(contains(said({.n_group = 3}), "16 experts do not fall into n_group = 3"));
  CHECK(contains(said({.n_group = 0}), "n_group = 0"));
  CHECK(contains(said({.n_group = 4, .topk_group = 5}), "topk_group is 5 of n_group = 4"));
  CHECK(contains(said({.n_group = 4, .topk_group = 0}), "topk_group is 0 of n_group = 4"));
  for (const double factor :
       {0.0, -1.0, 2e30, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    CHECK(contains(said({.scaling_factor = factor}), "not above 0 and at most 1e30"));
  }
  CHECK(contains(said({.score_function = static_cast<score_function>(9)}), "that does not exist"));
}

TEST_CASE("sizes one short are refused before anything is written") {
  const index_t size = gating_workspace(T, N);
  std::vector<double> logits(64), weights(16, 7.0), gradient(64, 7.0),
      workspace(static_cast<std::size_t>(size)), bias(8);
  std::vector<expert_id> ids(16, 1);
  const auto x = row_major<host_space>(static_cast<const double*>(logits.data()), T, N);
  const auto w = row_major(weights.data(), T, K);
  const auto g = row_major(gradient.data(), T, N);
  const vector_view<double> work(workspace), less(workspace.data(), size - 1),
      apart(workspace.data(), size / 2, 2);
  const std::span<expert_id> fewer = std::span(ids).first(15);
  CHECK(refused([&] { gate<double>(x, {}, {}, {w, ids}, less); }, "gate: the workspace has"));
  CHECK(refused([&] { gate<double>(x, {}, {}, {w, ids}, apart); }, "gate: the workspace has"));
  CHECK(refused([&] { gate<double>(x, {}, {}, {w, fewer}, work); }, "gate: 15 expert ids, not T · K = 16"));
  CHECK(refused([&] { gate<double>(x, {}, {}, {w.middle_rows(0, 7), ids}, work); },
                "gate: the weights are [7, 2]"));
  CHECK(refused([&] { gate<double>(x, {}, vector_view<double>(bias.data(), 7), {w, ids}, work); },
                "gate: a selection bias of 7 elements for 8 experts"));
  CHECK(refused([&] { gate<double>(x, {}, vector_view<double>(bias.data(), 1), {w, ids}, work); },
                "gate: a selection bias of 1 elements for 8 experts"));
  CHECK(refused([&] { gate_vjp<double>(x, {}, ids, w, g, gradient_mode::write, less); },
                "gate_vjp: the workspace has"));
  CHECK(refused([&] { gate_vjp<double>(x, {}, fewer, w, g, gradient_mode::write, work); },
                "gate_vjp: 15 expert ids"));
  CHECK(refused([&] { gate_vjp<double>(x, {}, ids, w.middle_rows(0, 7), g, gradient_mode::write, work); },
                "gate_vjp: the gradients of the weights are [7, 2]"));
  CHECK(refused([&] { gate_vjp<double>(x, {}, ids, w, g, gradient_mode::write, work); },
                "gate_vjp: token 0 has expert 1 twice"));
  CHECK(refused([&] { gate_vjp<double>(x, {}, ids, w, g.middle_rows(0, 7), gradient_mode::write, work); },
                "gate_vjp: the gradient to the logits is [7, 8]"));
  CHECK(refused(
      [&] { gate_vjp<double>(x, {}, ids, w, g, gradient_mode::write, vector_view<double>(gradient)); },
      "gate_vjp: the gradient to the logits and the workspace overlap"));
  CHECK(refused([&] { gate_vjp<double>(g, {}, ids, w, g, gradient_mode::write, work); },
                "gate_vjp: the gradient to the logits and the logits overlap"));
  CHECK(refused(
      [&] { gate_vjp<double>(x, {}, ids, w, row_major(weights.data(), 2, N), gradient_mode::write, work); },
      "gate_vjp: the gradient to the logits is [2, 8]"));
  CHECK(refused([&] { z_loss_vjp<double>(g, 1.0, g, gradient_mode::write); },
                "z_loss_vjp: the gradient to the logits and the logits overlap"));
  CHECK(refused([&] { (void)z_loss<double>(g, vector_view<double>(gradient)); },
                "z_loss: the workspace and the logits overlap"));
  std::vector<double> sums(static_cast<std::size_t>(balance_workspace(T, N, 4)));
  const auto f = score_function::softmax;
  const vector_view<double> all(sums), most(sums.data(), static_cast<index_t>(sums.size()) - 1);
  CHECK(
      refused([&] { (void)balance_loss<double>(x, f, ids, K, 4, most); }, "balance_loss: the workspace has"));
  CHECK(refused([&] { (void)balance_loss<double>(x, f, ids, K, 3, all); },
                "8 tokens do not fall into sequences of length 3"));
  CHECK(refused([&] { (void)balance_loss<double>(x, f, fewer, K, 4, all); }, "15 expert ids"));
  CHECK(refused([&] { balance_loss_vjp<double>(g, f, ids, K, 4, 1.0, g, gradient_mode::write, all); },
                "balance_loss_vjp: the gradient to the logits and the logits overlap"));
  CHECK(refused(
      [&] {
        balance_loss_vjp<double>(x, f, ids, K, 4, 1.0, row_major(sums.data(), T, N), gradient_mode::write,
                                 all);
      },
      "balance_loss_vjp: the workspace and the gradient to the logits overlap"));
  CHECK(refused([&] { (void)balance_loss<double>(x, f, ids, K, 16, all); },
                "8 tokens do not fall into sequences of length 16"));
  for (const index_t n : {7, 9}) {
    const std::vector<index_t> load(static_cast<std::size_t>(n), 1);
    const std::string text = "loads of " + std::to_string(n) + " experts, not 8";
    CHECK(refused([&] { (void)global_balance_loss<double>(x, f, load, all); }, text));
    CHECK(refused([&] { global_balance_loss_vjp<double>(x, f, load, 1.0, g, gradient_mode::write, all); },
                  text));
  }
  const std::vector<index_t> load(8, 1);
  for (const auto& wrong : {g.middle_rows(0, 7), g.middle_cols(0, 7), row_major(gradient.data(), 9, 7)}) {
    const std::string text = "the gradient to the logits is [" + std::to_string(wrong.rows()) + ", " +
                             std::to_string(wrong.cols()) + "], not [8, 8]";
    CHECK(refused([&] { gate_vjp<double>(x, {}, ids, w, wrong, gradient_mode::write, work); }, text));
    CHECK(refused([&] { z_loss_vjp<double>(x, 1.0, wrong, gradient_mode::write); }, text));
    CHECK(refused([&] { balance_loss_vjp<double>(x, f, ids, K, 4, 1.0, wrong, gradient_mode::write, all); },
                  text));
    CHECK(refused([&] { global_balance_loss_vjp<double>(x, f, load, 1.0, wrong, gradient_mode::write, all); },
                  text));
  }
  const vector_view<double> none;
  CHECK(refused([&] { (void)z_loss<double>(x, none); }, "z_loss: the workspace has 0 elements, not 1"));
  for (const double v : weights) CHECK(v == 7);
  for (const double v : gradient) CHECK(v == 7);
}

TEST_CASE("shapes of logits, of their backward and of products that do not fit are refused") {
  std::vector<double> memory(512), other(512);
  const auto at = [&](index_t first, index_t rows, index_t cols) {
    return row_major(memory.data() + first, rows, cols);
  };
  const matrix_view<const double> X = at(0, 3, 5), R = at(16, 4, 5), G = at(64, 3, 4);
  const auto to = [&](index_t rows, index_t cols) { return row_major(other.data(), rows, cols); };
  for (const auto& [rows, cols] : {std::pair<index_t, index_t>{2, 4}, {4, 4}, {3, 3}, {3, 5}}) {
    CHECK(
        refused([&, r = rows, c = cols] { router_logits(X, R, to(r, c)); }, "router_logits: tokens [3, 5]"));
    CHECK(
        refused([&, r = rows,
                 c = cols] { plain_products{}.multiply(X, R.transposed(), to(r, c), gradient_mode::write); },
                "multiply: [3, 5] times [5, 4] is not ["));
  }
  CHECK(refused([&] { plain_products{}.multiply(X, R, to(3, 5), gradient_mode::write); },
                "multiply: [3, 5] times [4, 5]"));
  for (const index_t size : {1, 3, 5}) {
    const vector_view<double> bias(memory.data() + 100, size);
    const std::string text = std::to_string(size) + " elements for 4 experts";
    CHECK(refused([&] { router_logits(X, R, bias, to(3, 4)); }, "a bias of the logits of " + text));
    CHECK(refused(
        [&] {
          router_logits_vjp(X, R, G, to(3, 5), row_major(other.data() + 32, 4, 5),
                            vector_view<double>(other.data() + 100, size), gradient_mode::write);
        },
        "the gradient to the bias has " + text));
  }
  const auto backward = [&](const matrix_view<const double>& grad_logits,
                            const matrix_view<double>& grad_tokens, const matrix_view<double>& grad_rows) {
    return message_of([&] {
      router_logits_vjp(X, R, grad_logits, grad_tokens, grad_rows, vector_view<double>(),
                        gradient_mode::write);
    });
  };
  const auto to_rows = row_major(other.data() + 32, 4, 5);
  CHECK(backward(G, to(3, 5), to_rows).empty());
  CHECK(backward(G, {}, to_rows).empty());
  CHECK(backward(G, to(3, 5), {}).empty());
  const char* const text = "router_logits_vjp: tokens [3, 5], rows [4, 5]";
  CHECK(contains(backward(at(64, 2, 4), to(3, 5), to_rows), text));
  CHECK(contains(backward(at(64, 3, 5), to(3, 5), to_rows), text));
  CHECK(contains(backward(G, to(2, 5), to_rows), text));
  CHECK(contains(backward(G, to(3, 4), to_rows), text));
  CHECK(contains(backward(G, to(3, 5), to_rows.middle_rows(0, 3)), text));
  CHECK(contains(backward(G, to(3, 5), to_rows.middle_cols(0, 4)), text));
}

TEST_CASE("workspaces may be larger than what is used: the rest is the caller's, and stays as it was") {
  constexpr index_t t = 600;  // three blocks of tokens
  const auto f = score_function::softmax;
  std::vector<double> logits(t * N);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<double>(i * 37 % 101) / 50;
  const auto x = row_major(static_cast<const double*>(logits.data()), t, N);
  // What is written lies behind what is used of the workspace, and a few elements behind that.
  std::vector<double> memory;
  const auto after = [&](index_t used, index_t written) {
    memory.assign(static_cast<std::size_t>(used + written + 8), 7.0);
    return memory.data() + used;
  };
  const auto is_kept = [&] {
    return std::all_of(memory.end() - 8, memory.end(), [](double v) { return v == 7; });
  };
  std::vector<expert_id> ids(t * K);
  const index_t gate_size = gating_workspace(t, N);
  double* out = after(gate_size, t * K);
  gate<double>(x, {}, {}, {row_major(out, t, K), ids}, vector_view<double>(memory));
  CHECK(is_kept());
  const std::vector<double> weights(out, out + t * K);
  std::vector<double> apart(t * K), work(static_cast<std::size_t>(gate_size));
  gate<double>(x, {}, {}, {row_major(apart.data(), t, K), ids}, work);
  CHECK(weights == apart);
  out = after(gate_size, t * N);
  gate_vjp<double>(x, {}, ids, row_major(apart.data(), t, K), row_major(out, t, N), gradient_mode::write,
                   vector_view<double>(memory));
  CHECK(is_kept());
  for (const index_t length : {index_t{1}, index_t{300}, t}) {
    out = after(balance_workspace(t, N, length), t * N);
    balance_loss_vjp<double>(x, f, ids, K, length, 1.0, row_major(out, t, N), gradient_mode::write,
                             vector_view<double>(memory));
    CHECK(is_kept());
    out = after(balance_workspace(t, N, length), 0);
    CHECK(std::isfinite(balance_loss<double>(x, f, ids, K, length, vector_view<double>(memory))));
    CHECK(is_kept());
  }
  (void)after(3, 0);
  CHECK(z_loss<double>(x, vector_view<double>(memory)) > 0);
  CHECK(is_kept());
  CHECK(refused([&] { (void)z_loss<double>(x, vector_view<double>(memory.data(), 2)); },
                "z_loss: the workspace has 2 elements, not 3"));
}
#endif

}  // namespace test_gate_refusals
