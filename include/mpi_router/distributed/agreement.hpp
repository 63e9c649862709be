// What the ranks tell each other before they send numbers: that all of them take the call, that they take the
// same one, and where their parts lie. So a mistake of one is an error of all, and none waits for it.
#pragma once

#include <mpi_router/distributed/communicator.hpp>
#include <mpi_router/distributed/shards.hpp>

#include <array>
#include <bit>
#include <cstdint>
#include <exception>
#include <vector>

MPIROUTER_BEGIN
namespace detail {

/// Whole numbers below 2^60 in messages of floats: three digits each.
inline constexpr index_t word_digits = 3;
inline constexpr index_t word_base = index_t{1} << 20;
template <Accumulator S>
void put_word(S* at, index_t value) noexcept {
  at[0] = static_cast<S>(value % word_base);
  at[1] = static_cast<S>(value / word_base % word_base);
  at[2] = static_cast<S>(value / word_base / word_base);
}
template <Accumulator S>
[[nodiscard]] index_t get_word(const S* at) noexcept {
  return static_cast<index_t>(at[0]) +
         word_base * (static_cast<index_t>(at[1]) + word_base * static_cast<index_t>(at[2]));
}

/// What has to be the same on every rank: a few numbers to name, and a sum over everything.
struct call_signature {
  index_t layers = 0;
  expert_shape first_layer;
  std::uint64_t sum = 0xcbf29ce484222325U;

  constexpr void mix(std::uint64_t value) noexcept {
    sum = (sum ^ value) * 0x9e3779b97f4a7c15U;
    sum ^= sum >> 29;
  }
  constexpr void mix(double value) noexcept { mix(std::bit_cast<std::uint64_t>(value)); }
  constexpr void mix(const char* text) noexcept {
    for (; *text != '\0'; ++text) mix(static_cast<std::uint64_t>(static_cast<unsigned char>(*text)));
  }
  constexpr void mix(const expert_shape& s) noexcept {
    for (const index_t extent : {s.num_experts, s.ffn_dim, s.hidden_dim}) {
      mix(static_cast<std::uint64_t>(extent));
    }
  }

  [[nodiscard]] constexpr std::array<index_t, 6> words() const noexcept {
    return {0,
            layers,
            first_layer.num_experts,
            first_layer.ffn_dim,
            first_layer.hidden_dim,
            static_cast<index_t>(sum >> 4)};
  }
};

inline constexpr index_t signature_size = 6 * word_digits;

/// The first rank whose signature is not that of rank 0, or that refused the call; −1 if there is none.
template <Accumulator S>
void expect_one_call(const char* what, const vector_view<S>& all, index_t size) {
  const auto word = [&](index_t rank, index_t which) {
    return get_word(all.data() + rank * signature_size + which * word_digits);
  };
  for (index_t rank = 0; rank < size; ++rank) {
    expect(word(rank, 0) == 0, what, ": rank ", rank, " of ", size, " has refused its arguments");
  }
  for (index_t rank = 1; rank < size; ++rank) {
    bool same = true;
    for (index_t which = 1; which < 6; ++which) {
      same = same && word(rank, which) == word(0, which);
    }
    expect(same, what, ": rank ", rank,
           " comes with other layers, shapes or options than rank 0: ", word(rank, 1),
           " layers, the first of [N = ", word(rank, 2), ", F = ", word(rank, 3), ", D = ", word(rank, 4),
           "], not ", word(0, 1), " of [", word(0, 2), ", ", word(0, 3), ", ", word(0, 4), "]");
  }
}

/// One small message: check() looks at the arguments of this rank and gives their signature. Throws on every
/// rank where one throws (there what it threw) or where they differ. Without exceptions the rank that refuses
/// aborts. all: size · signature_size elements, of a workspace that check() has seen to be there.
template <Accumulator S, class Comm, class Check, class Room>
void agree(const char* what, const Comm& comm, const Check& check, const Room& room) {
  std::array<S, static_cast<std::size_t>(signature_size)> mine{};
  const auto size = static_cast<index_t>(comm.size());
  const auto encode = [&](const std::array<index_t, 6>& words) {
    for (index_t k = 0; k < 6; ++k)
      put_word(mine.data() + k * word_digits, words[static_cast<std::size_t>(k)]);
  };
  const vector_view<const S> message(mine.data(), signature_size);
#if MPIROUTER_HAS_EXCEPTIONS
  std::exception_ptr refusal;
  try {
    encode(check().words());
  } catch (...) {
    refusal = std::current_exception();
  }
  if (refusal) {  // the workspace may be what is wrong: only here is memory of its own
    encode({1, 0, 0, 0, 0, 0});
    std::vector<S> all(static_cast<std::size_t>(size * signature_size));
    comm.all_gather(message, vector_view<S>(all));
    std::rethrow_exception(refusal);
  }
#else
  encode(check().words());
#endif
  const vector_view<S> all = room();
  comm.all_gather(message, all);
  expect_one_call(what, all, size);
}

/// The placements of all ranks in all layers, and how much room each rank's workspace has for messages.
template <Accumulator S>
class gathered_placements {
 public:
  static constexpr index_t words_of_layer = 5;
  /// Elements of scratch for them.
  [[nodiscard]] static constexpr index_t size(index_t layers, index_t ranks) noexcept {
    return (ranks + 1) * words(layers) * word_digits;
  }

  gathered_placements() = default;
  gathered_placements(const vector_view<S>& scratch, index_t layers, index_t ranks)
      : layers_(layers), ranks_(ranks), mine_(scratch.data()), all_(mine_ + words(layers) * word_digits) {}

  void put(index_t layer, const shard_placement& p) {
    const std::array<index_t, 5> numbers{p.first_expert, p.num_experts, p.first_neuron, p.end_neuron,
                                         static_cast<index_t>(p.kind)};
    for (index_t k = 0; k < words_of_layer; ++k) {
      put_word(mine_ + (1 + layer * words_of_layer + k) * word_digits, numbers[static_cast<std::size_t>(k)]);
    }
  }
  template <class Comm>
  void gather(const Comm& comm, index_t room) {
    put_word(mine_, room);
    const index_t count = words(layers_) * word_digits;
    comm.all_gather(vector_view<const S>(mine_, count), vector_view<S>(all_, ranks_ * count));
  }
  [[nodiscard]] index_t ranks() const noexcept { return ranks_; }
  [[nodiscard]] index_t room(index_t rank) const { return get_word(at(rank, 0)); }
  [[nodiscard]] shard_placement operator()(index_t rank, index_t layer) const {
    const auto word = [&](index_t k) { return get_word(at(rank, 1 + layer * words_of_layer + k)); };
    return {word(0), word(1), word(2), word(3), static_cast<shard_placement::form>(word(4))};
  }
  /// The most experts that any rank has a part of.
  [[nodiscard]] index_t most_experts(index_t layer) const {
    index_t most = 0;
    for (index_t rank = 0; rank < ranks_; ++rank) most = std::max(most, (*this)(rank, layer).num_experts);
    return most;
  }

 private:
  [[nodiscard]] static constexpr index_t words(index_t layers) noexcept {
    return 1 + layers * words_of_layer;
  }
  [[nodiscard]] const S* at(index_t rank, index_t word) const {
    return all_ + (rank * words(layers_) + word) * word_digits;
  }

  index_t layers_ = 0;
  index_t ranks_ = 0;
  S* mine_ = nullptr;
  S* all_ = nullptr;
};

/// Every neuron of every expert is on one rank, in the order of the ranks. ends: N elements of scratch, how
/// far the ranks so far have come.
template <Accumulator S>
void expect_all_neurons(const char* what, const gathered_placements<S>& placements, index_t layer,
                        const expert_shape& whole, const vector_view<S>& ends) {
  std::fill_n(ends.data(), whole.num_experts, S{0});
  for (index_t rank = 0; rank < placements.ranks(); ++rank) {
    const shard_placement here = placements(rank, layer);
    for (index_t i = here.first_expert; i < here.first_expert + here.num_experts; ++i) {
      const neuron_run run = here.neurons(whole, i);
      const auto end = static_cast<index_t>(ends[i]);
      expect(run.first == end, what, ": layer ", layer, ", expert ", i, ": rank ", rank, " has neurons from ",
             run.first, " on, where the ranks before it end at ", end);
      ends[i] = static_cast<S>(run.end);
    }
  }
  for (index_t i = 0; i < whole.num_experts; ++i) {
    expect(static_cast<index_t>(ends[i]) == whole.ffn_dim, what, ": layer ", layer, ", expert ", i,
           ": the ranks have ", static_cast<index_t>(ends[i]), " neurons of F = ", whole.ffn_dim);
  }
}
/// So is every column.
template <Accumulator S>
void expect_all_columns(const char* what, const gathered_placements<S>& placements, index_t layer,
                        const expert_shape& whole) {
  index_t at = 0;
  for (index_t rank = 0; rank < placements.ranks(); ++rank) {
    const shard_placement here = placements(rank, layer);
    expect(here.first_neuron == at || here.first_neuron == here.end_neuron, what, ": layer ", layer,
           ": rank ", rank, " has columns from ", here.first_neuron, " on, where the ranks before it end at ",
           at);
    at = std::max(at, here.end_neuron);
  }
  expect(at == whole.hidden_dim, what, ": layer ", layer, ": the ranks have ", at,
         " columns of D = ", whole.hidden_dim);
}

}  // namespace detail
MPIROUTER_END
