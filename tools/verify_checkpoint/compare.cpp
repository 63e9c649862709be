#include "compare.hpp"

#include "analyse.hpp"
#include "compare_match.hpp"
#include "gpu_operator.hpp"
#include "parallel.hpp"
#include "seen_expert.hpp"
#include "weights.hpp"

#include <fmt/format.h>

#include <cmath>
#include <utility>

namespace verify {

namespace {

using namespace mpi_router;
using progress_call = std::function<void(index_t, index_t)>;

/// |⟨v, v'⟩| + ⟨r̂, r̂'⟩ of all pairs; what is not known adds nothing.
Eigen::MatrixXd likeness_of(const std::vector<seen_expert>& a, const std::vector<seen_expert>& b) {
  const auto stacked = [](const std::vector<seen_expert>& experts, bool rows) {
    Eigen::MatrixXd out(experts.front().row.size(), static_cast<index_t>(experts.size()));
    for (std::size_t i = 0; i < experts.size(); ++i) {
      const auto& e = experts[i];
      auto column = out.col(static_cast<index_t>(i));
      column = rows ? e.row : e.v;
      if (rows && e.numbers.has_row) {
        column.stableNormalize();
      } else if (rows) {
        column.setZero();
      }
    }
    return out;
  };
  return (stacked(a, false).transpose() * stacked(b, false)).cwiseAbs() +
         stacked(a, true).transpose() * stacked(b, true);
}

/// ‖B − A‖₂ of two experts with as many neurons. In units of a power of two near its largest element, whose
/// square need not be a double.
std::optional<norm_bounds> norm_of_change(const moe_layer& a, index_t i, const moe_layer& b, index_t j,
                                          gpu* device) {
  const auto expert = [](const moe_layer& layer, index_t e) {
    return layer.gates[static_cast<std::size_t>(e)];
  };
  if (expert(a, i).ffn_dim != expert(b, j).ffn_dim) {
    return std::nullopt;
  }
  const core_of_host core(device);
  gate_matrix change = read_gate(b, j);
  change -= read_gate(a, i);
  const double largest = change.cwiseAbs().maxCoeff<Eigen::PropagateNaN>();
  const int exponent = std::isfinite(largest) && largest > 0 ? std::ilogb(largest) : 0;
  change = change.unaryExpr([exponent](double x) { return std::ldexp(x, -exponent); });
  auto norm = multiplies_on_gpu({.device = device}, change.rows(), change.cols())
                  ? spectral_norm(gpu_operator(*device, view(std::as_const(change))))
                  : spectral_norm(gate_operator(change));
  norm.value = std::ldexp(norm.value, exponent);
  norm.high = std::ldexp(norm.high, exponent);
  return norm;
}

pair_result compare_pair(const moe_layer& layer_a, const seen_expert& a, const moe_layer& layer_b,
                         const seen_expert& b, gpu* device) {
  pair_result pair{a.numbers, b.numbers, {}, {}, std::nullopt, {}};
  pair.row = compare_rows(view(a.row), view(b.row));
  pair.direction = compare_directions(a.found, b.found);
  pair.change = norm_of_change(layer_a, a.numbers.expert, layer_b, b.numbers.expert, device);
  if (pair.change) {
    pair.wedin = wedin_limit(a.found, b.found, *pair.change);
  }
  return pair;
}

/// The rows of these experts, [N, D].
Eigen::MatrixXd rows_of(const std::vector<seen_expert>& experts, Eigen::VectorXd seen_expert::* row) {
  Eigen::MatrixXd out(static_cast<index_t>(experts.size()), experts.front().row.size());
  for (std::size_t i = 0; i < experts.size(); ++i) {
    out.row(static_cast<index_t>(i)) = (experts[i].*row).transpose();
  }
  return out;
}

std::vector<seen_expert> look_at_all(const moe_layer& layer, gpu* device, const progress_call& progress) {
  std::vector<seen_expert> experts(static_cast<std::size_t>(layer.num_experts));
  for_each_parallel(
      layer.num_experts, [&](index_t i) { experts[static_cast<std::size_t>(i)] = look_at(layer, i, device); },
      progress);
  return experts;
}

void compare_layer(layer_comparison& pair, const token_matrix& tokens, std::optional<index_t> top_k,
                   gpu* device, const std::function<progress_call(index_t)>& progress_of) {
  const auto a = look_at_all(*pair.a, device, progress_of(pair.a->num_experts));
  const auto b = look_at_all(*pair.b, device, progress_of(pair.b->num_experts));
  const auto match = match_experts(likeness_of(a, b));
  pair.by_number = match.by_number;
  pair.only_a = match.only_a;
  pair.only_b = match.only_b;
  pair.pairs.resize(match.pairs.size());
  const auto count = static_cast<index_t>(match.pairs.size());
  for_each_parallel(
      count,
      [&](index_t k) {
        const auto [i, j] = match.pairs[static_cast<std::size_t>(k)];
        pair.pairs[static_cast<std::size_t>(k)] = compare_pair(
            *pair.a, a[static_cast<std::size_t>(i)], *pair.b, b[static_cast<std::size_t>(j)], device);
      },
      progress_of(count));
  pair.no_share = !top_k                                                 ? "K is not known"
                  : pair.a->selects_by_table || pair.b->selects_by_table ? "a table of token ids chooses"
                                                                         : "";
  if (pair.no_share.empty()) {
    const auto share = [&](Eigen::VectorXd seen_expert::* row) {
      return compare_choices(tokens, rows_of(a, row), rows_of(b, row), match.pairs, *top_k);
    };
    pair.stored = share(&seen_expert::row);
    pair.step = share(&seen_expert::next);
  }
}

/// Why two layers cannot be compared; empty if they can.
std::string why_not(const moe_layer& a, const moe_layer& b) {
  if (a.hidden_dim != b.hidden_dim) {
    return fmt::format("not comparable: D = {} and {}", a.hidden_dim, b.hidden_dim);
  }
  if (a.part != b.part) {
    return fmt::format("not comparable: the {} projections of A and the {} projections of B",
                       to_string(a.part), to_string(b.part));
  }
  return "";
}

/// The tokens for layers of this D: those of the file, or as many Gaussian ones.
class token_source {
 public:
  explicit token_source(const std::string& place) {
    if (!place.empty()) {
      place_ = place;
      tokens_ = read_tokens(place);
    }
  }
  [[nodiscard]] std::string describe() const {
    return place_.empty() ? fmt::format("{} Gaussian tokens", gaussian_tokens)
                          : fmt::format("the {} tokens of {}", tokens_.rows(), place_);
  }
  const token_matrix& of(index_t hidden_dim) {
    if (tokens_.cols() != hidden_dim) {
      if (!place_.empty()) {
        io::file_failure(place_, "its tokens have ", tokens_.cols(),
                         " elements, the layers D = ", hidden_dim);
      }
      tokens_ = random_tokens(gaussian_tokens, hidden_dim);
    }
    return tokens_;
  }

 private:
  std::string place_;
  token_matrix tokens_;
};

}  // namespace

void compare(const std::vector<const moe_layer*>& a, const std::vector<const moe_layer*>& b,
             const choice_options& options, gpu* device, comparison_result& result,
             const progress_call& progress) {
  const auto match = match_layers(a, b);
  result.only_a = match.only_a;
  result.only_b = match.only_b;
  index_t all = 0;
  for (const auto& [one, other] : match.pairs) {
    auto& pair = result.layers.emplace_back();
    pair.a = one;
    pair.b = other;
    pair.problem = why_not(*one, *other);
    all += pair.problem.empty()
               ? one->num_experts + other->num_experts + std::min(one->num_experts, other->num_experts)
               : 0;
  }
  token_source tokens(options.tokens);
  result.tokens = tokens.describe();
  result.top_k = options.top_k;
  Eigen::setNbThreads(1);  // the experts are what is spread
  index_t before = 0;
  const auto progress_of = [&](index_t count) -> progress_call {
    before += count;
    return [&progress, &all, from = before - count](index_t done, index_t) {
      progress(std::min(from + done, all), all);
    };
  };
  for (auto& pair : result.layers) {
    if (pair.problem.empty()) {
      const token_matrix none;
      compare_layer(pair, options.top_k ? tokens.of(pair.a->hidden_dim) : none, options.top_k, device,
                    progress_of);
    }
  }
}

}  // namespace verify
