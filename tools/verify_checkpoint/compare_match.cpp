#include "compare_match.hpp"

#include <mpi_router/io/moe/layer_names.hpp>

#include <algorithm>
#include <numeric>
#include <optional>

namespace verify {

namespace {

using layer_list = std::vector<const moe_layer*>;

std::optional<index_t> number_of(const moe_layer& layer) {
  const auto place = mpi_router::detail::moe::place_of_layer(layer.name);
  return place ? std::optional(place->number) : std::nullopt;
}

/// Takes the pairs of one key out of both lists, where no other layer of the list has it.
template <class Key>
void take_pairs(layer_match& match, const Key& key_of) {
  const auto only_one = [&](const layer_list& list, const auto& key) {
    return std::ranges::count_if(list, [&](const auto* layer) { return key_of(*layer) == key; }) == 1;
  };
  const layer_list all_a = match.only_a;
  const layer_list all_b = match.only_b;
  for (const auto* a : all_a) {
    const auto key = key_of(*a);
    if (only_one(all_a, key) && only_one(all_b, key)) {
      const auto b = std::ranges::find_if(all_b, [&](const auto* layer) { return key_of(*layer) == key; });
      match.pairs.emplace_back(a, *b);
      std::erase(match.only_a, a);
      std::erase(match.only_b, *b);
    }
  }
}

}  // namespace

layer_match match_layers(const layer_list& a, const layer_list& b) {
  layer_match match{{}, a, b};
  take_pairs(match, [](const moe_layer& layer) { return layer.name; });
  take_pairs(match, number_of);
  const auto place = [&](const auto& pair) { return std::ranges::find(a, pair.first); };
  std::ranges::sort(match.pairs, [&](const auto& x, const auto& y) { return place(x) < place(y); });
  return match;
}

namespace {

/// For each expert of A the one of B that neither is liker to another than to; −1 where there is none.
std::vector<index_t> partners_of(const Eigen::MatrixXd& likeness) {
  constexpr double equal = 1e-9;
  const Eigen::VectorXd best_of_a = likeness.rowwise().maxCoeff();
  const Eigen::RowVectorXd best_of_b = likeness.colwise().maxCoeff();
  std::vector<index_t> partner(static_cast<std::size_t>(likeness.rows()), -1);
  std::vector<bool> taken(static_cast<std::size_t>(likeness.cols()));
  const auto try_pair = [&](index_t i, index_t j) {
    auto& mine = partner[static_cast<std::size_t>(i)];
    const bool best = likeness(i, j) >= best_of_a[i] - equal && likeness(i, j) >= best_of_b[j] - equal;
    if (best && mine < 0 && !taken[static_cast<std::size_t>(j)]) {
      mine = j;
      taken[static_cast<std::size_t>(j)] = true;
    }
  };
  for (index_t i = 0; i < std::min(likeness.rows(), likeness.cols()); ++i) {
    try_pair(i, i);
  }
  for (index_t i = 0; i < likeness.rows(); ++i) {
    for (index_t j = 0; j < likeness.cols(); ++j) {
      try_pair(i, j);
    }
  }
  return partner;
}

}  // namespace

expert_match match_experts(const Eigen::MatrixXd& likeness) {
  std::vector<index_t> partner = partners_of(likeness);
  expert_match match;
  match.by_number = likeness.rows() == likeness.cols();
  for (index_t i = 0; i < likeness.rows(); ++i) {
    const index_t j = partner[static_cast<std::size_t>(i)];
    match.by_number = match.by_number && (j < 0 || j == i);
  }
  if (match.by_number) {
    std::iota(partner.begin(), partner.end(), index_t{0});
  }
  for (index_t i = 0; i < likeness.rows(); ++i) {
    if (const index_t j = partner[static_cast<std::size_t>(i)]; j >= 0) {
      match.pairs.emplace_back(i, j);
    } else {
      match.only_a.push_back(i);
    }
  }
  for (index_t j = 0; j < likeness.cols(); ++j) {
    if (std::ranges::find(partner, j) == partner.end()) {
      match.only_b.push_back(j);
    }
  }
  return match;
}

}  // namespace verify
