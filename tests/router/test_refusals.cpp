// What the gate, its backward and the losses refuse, and by which words: sizes one short, memory that meets.
#include <mpi_router/router/balance.hpp>
#include <mpi_router/router/gating_vjp.hpp>
#include <mpi_router/router/z_loss.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>

#include <cstring>
#include <map>
#include <string>
#include <vector>

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
      const bool is_said = contains(message, what + ": ") && contains(message, one) && contains(message, other) &&
                           contains(message, "overlap");
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
  check_apart(a, "route", {"the logits", "the weights", "the expert ids", "the statuses", "the workspace"},
              {"the tokens", "the rows", "the bias of the logits", "the selection bias", "the mask"}, [&] {
                route(a.matrix("the tokens", T, D), a.matrix("the rows", N, D), {},
                      {.logits = a.vector("the bias of the logits", N), .selection = a.vector("the selection bias", N)},
                      a.matrix("the logits", T, N),
                      gate_output<double>{a.matrix("the weights", T, K), a.at<expert_id>("the expert ids", T * K),
                                          a.at<status>("the statuses", T)},
                      a.vector("the workspace", size), {}, plain_products{}, a.at<status>("the mask", T + 1).last(T));
              });
  arguments b;  // ids of its own: different ones for each token
  std::vector<expert_id> ids;
  for (index_t t = 0; t < T; ++t) ids.insert(ids.end(), {0, 1});
  check_apart(b, "gate_weights", {"the weights", "the workspace", "the statuses"},
              {"the logits", "the selection bias", "the mask", "the expert ids"}, [&] {
                const auto mine = b.at<expert_id>("the expert ids", T * K);
                std::memcpy(mine.data(), ids.data(), 0);
                const auto mask = b.at<status>("the mask", T + 1).last(T);
                std::fill(mask.begin(), mask.end(), status::ok);
                gate_weights<double>(b.matrix("the logits", T, N), {.top_k = K}, mine, b.matrix("the weights", T, K),
                                     b.vector("the workspace", size), {}, mask, b.at<status>("the statuses", T),
                                     b.vector("the selection bias", N));
              });
}
#endif
