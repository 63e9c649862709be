// What the balance losses are made of: counts of choices and sums of probabilities, block by block of tokens.
#pragma once

#include <mpi_router/core/apart.hpp>
#include <mpi_router/core/options.hpp>
#include <mpi_router/router/mask.hpp>
#include <mpi_router/router/scores.hpp>
#include <mpi_router/router/token_blocks.hpp>

MPIROUTER_BEGIN
namespace detail {

/// Blocks of tokens that end at the ends of sequences; a loss is summed block by block.
struct sequence_blocks {
  index_t length;
  index_t per_sequence;
  index_t count;

  sequence_blocks(const char* what, index_t num_tokens, index_t sequence_length)
      : length(num_tokens == 0 && sequence_length == 0 ? 1 : sequence_length),  // L = T = 0 is no work
        per_sequence(token_blocks(length)) {
    expect(length >= 1 && num_tokens % length == 0, what, ": ", num_tokens,
           " tokens do not fall into sequences of length ", length);
    count = num_tokens / length * per_sequence;
  }
  [[nodiscard]] index_t sequences() const noexcept { return count / per_sequence; }
  [[nodiscard]] index_t sequence_of(index_t block) const noexcept { return block / per_sequence; }
  [[nodiscard]] index_t first(index_t block) const noexcept {
    return block / per_sequence * length + block % per_sequence * token_block;
  }
  [[nodiscard]] index_t end(index_t block) const noexcept {
    return std::min(first(block) + token_block, (block / per_sequence + 1) * length);
  }
};

/// One block's part of the workspace. Counts are of at most 256 tokens, so they are exact in S; sums of them
/// are taken as integers.
template <Accumulator S>
struct block_sums {
  S* probabilities;  ///< N: their sums over the tokens that count
  S* choices;        ///< N: how often each expert was chosen by them
  S* tokens;         ///< 1: how many they are
  S* p;              ///< N: scratch, the probabilities of one token
  S* copy;           ///< N: scratch, its logits

  [[nodiscard]] static constexpr index_t size(index_t num_experts) noexcept { return 4 * num_experts + 1; }
  block_sums(S* workspace, index_t block, index_t n)
      : probabilities(workspace + block * size(n)),
        choices(probabilities + n),
        tokens(choices + n),
        p(tokens + 1),
        copy(p + n) {}
};

/// The tokens of a balance loss and their probabilities: which count, and what they add up to.
template <class Score, Accumulator S>
struct sequence_sums {
  sequence_blocks blocks;
  matrix_view<const S> logits;
  std::span<const status> statuses;
  S* workspace;

  [[nodiscard]] block_sums<S> at(index_t block) const { return {workspace, block, logits.cols()}; }
  /// N factors for each sequence, behind the blocks.
  [[nodiscard]] S* factors(index_t sequence) const {
    return workspace + blocks.count * block_sums<S>::size(logits.cols()) + sequence * logits.cols();
  }

  /// use(t, logits, the largest) for each token of the block that counts.
  template <class Use>
  void for_counted(index_t block, const Use& use) const {
    for (index_t t = blocks.first(block); t < blocks.end(block); ++t) {
      const S* const x = contiguous<S>(logits.row(t), at(block).copy);
      S largest{};
      if (counts(statuses, t) && has_probabilities<Score>(x, logits.cols(), largest)) {
        use(t, x, largest);
      }
    }
  }

  /// Counts the tokens, and their choices where there are `experts`; adds up their probabilities where asked.
  template <class Run>
  void gather(std::span<const expert_id> experts, index_t top_k, bool adds, const Run& executor) const {
    const index_t n = logits.cols();
    executor(blocks.count, [&](index_t block) {
      const block_sums<S> sums = at(block);
      std::fill_n(sums.probabilities, n, S{0});
      std::fill_n(sums.choices, n, S{0});
      *sums.tokens = S{0};
      for_counted(block, [&](index_t t, const S* x, S largest) {
        *sums.tokens += S{1};
        for (index_t k = 0; !experts.empty() && k < top_k; ++k) {
          sums.choices[experts[static_cast<std::size_t>(t * top_k + k)]] += S{1};
        }
        if (adds) {
          probabilities<Score>(x, n, largest, sums.p);
          for (index_t i = 0; i < n; ++i) {
            sums.probabilities[i] += sums.p[i];
          }
        }
      });
    });
  }

  /// Σ value(block sums) over the blocks of a sequence.
  template <class Sum, class Value>
  [[nodiscard]] Sum over_sequence(index_t sequence, const Value& value) const {
    Sum sum{0};
    for (index_t j = 0; j < blocks.per_sequence; ++j) {
      sum += static_cast<Sum>(value(at(sequence * blocks.per_sequence + j)));
    }
    return sum;
  }
  [[nodiscard]] index_t tokens(index_t sequence) const {
    return over_sequence<index_t>(sequence, [](const block_sums<S>& sums) { return *sums.tokens; });
  }
  [[nodiscard]] index_t choices(index_t sequence, index_t expert) const {
    return over_sequence<index_t>(sequence,
                                  [expert](const block_sums<S>& sums) { return sums.choices[expert]; });
  }

  /// Σ_s Σ_i factor_s(i) Σ_t p_i over the tokens of each sequence that count.
  [[nodiscard]] S weighted_sum() const {
    double sum = 0;
    for (index_t block = 0; block < blocks.count; ++block) {
      const S* const factor = factors(blocks.sequence_of(block));
      const S* const p = at(block).probabilities;
      sum += sum_terms<S>(logits.cols(), [&](index_t i) { return factor[i] * p[i]; });
    }
    return static_cast<S>(sum);
  }

  /// Its gradient times `scale`: x̄_i = p_i (f_i − Σ f p)(log s_i)′.
  template <class Run>
  void weighted_sum_vjp(S scale, const matrix_view<S>& grad, bool accumulate, const Run& executor) const {
    const index_t n = logits.cols();
    executor(blocks.count, [&](index_t block) {
      const S* const factor = factors(blocks.sequence_of(block));
      S* const p = at(block).p;
      for (index_t t = blocks.first(block); !accumulate && t < blocks.end(block); ++t) {
        set_zero(grad.row(t));
      }
      for_counted(block, [&](index_t t, const S* x, S largest) {
        probabilities<Score>(x, n, largest, p);
        const S mean = sum_terms<S>(n, [&](index_t i) { return factor[i] * p[i]; });
        const vector_view<S> out = grad.row(t);
        for (index_t i = 0; i < n; ++i) {
          out[i] += scale * (p[i] * (factor[i] - mean) * Score::template log_derivative<host_math>(x[i]));
        }
      });
    });
  }
};

}  // namespace detail
MPIROUTER_END
