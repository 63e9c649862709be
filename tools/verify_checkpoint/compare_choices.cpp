#include "compare_choices.hpp"

#include "parallel.hpp"

#include <mpi_router/io/moe/visit.hpp>
#include <mpi_router/io/safetensors_file.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

namespace verify {

namespace {

namespace fs = std::filesystem;
using mpi_router::stored_tensor;

/// Whether each expert is among the `top_k` of these logits.
std::vector<bool> chosen_of(const Eigen::RowVectorXd& logits, index_t top_k) {
  const auto count = static_cast<std::size_t>(logits.size());
  const auto key = [&](index_t i) {
    return std::isnan(logits[i]) ? -std::numeric_limits<double>::infinity() : logits[i];
  };
  std::vector<index_t> order(count);
  std::iota(order.begin(), order.end(), index_t{0});
  const auto end = order.begin() + std::min<index_t>(top_k, logits.size());
  std::partial_sort(order.begin(), end, order.end(),
                    [&](index_t i, index_t j) { return key(i) > key(j) || (!(key(i) < key(j)) && i < j); });
  std::vector<bool> chosen(count);
  for (auto it = order.begin(); it != end; ++it) {
    chosen[static_cast<std::size_t>(*it)] = true;
  }
  return chosen;
}

const stored_tensor& tensor_of(const mpi_router::safetensors_file& file, const std::string& name) {
  if (!name.empty()) {
    return file.at(name);
  }
  const stored_tensor* found = nullptr;
  for (const auto& tensor : file.tensors()) {
    if (tensor.shape().size() == 2) {
      if (found != nullptr) {
        mpi_router::io::file_failure(file.path(), "has more than one matrix; say which: --tokens FILE:NAME");
      }
      found = &tensor;
    }
  }
  if (found == nullptr) {
    mpi_router::io::file_failure(file.path(), "has no matrix [T, D] of tokens");
  }
  return *found;
}

}  // namespace

token_matrix random_tokens(index_t count, index_t hidden_dim) {
  std::mt19937_64 random(20261128);
  std::normal_distribution<float> normal;
  token_matrix tokens(count, hidden_dim);
  for (auto& x : tokens.reshaped<Eigen::RowMajor>()) {
    x = normal(random);
  }
  return tokens;
}

fs::path file_of_tokens(const std::string& place) {
  std::error_code error;
  return fs::exists(place, error) ? place : place.substr(0, place.rfind(':'));
}

token_matrix read_tokens(const std::string& place) {
  const auto path = file_of_tokens(place);
  const mpi_router::safetensors_file file(path);
  const auto after = path.native().size() + 1;
  const auto& tensor = tensor_of(file, after < place.size() ? place.substr(after) : "");
  const auto shape = tensor.shape();
  if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1) {
    tensor.fail("is ", mpi_router::to_string(shape), ", not [T, D], tokens");
  }
  token_matrix tokens(shape[0], shape[1]);
  mpi_router::visit_type(tensor, [&]<class T>(T) {
    const auto data = tensor.load<T>();
    for (index_t i = 0; i < tokens.size(); ++i) {
      tokens.data()[i] = static_cast<float>(mpi_router::widen<double>(data.data()[i]));
    }
  });
  if (!tokens.allFinite()) {
    tensor.fail("has tokens that are not finite");
  }
  return tokens;
}

choice_share compare_choices(const token_matrix& tokens, const Eigen::MatrixXd& rows_a,
                             const Eigen::MatrixXd& rows_b,
                             const std::vector<std::pair<index_t, index_t>>& pairs, index_t top_k) {
  std::vector<index_t> partner(static_cast<std::size_t>(rows_a.rows()), -1);
  for (const auto& [a, b] : pairs) {
    partner[static_cast<std::size_t>(a)] = b;
  }
  constexpr index_t block = 256;
  const index_t blocks = (tokens.rows() + block - 1) / block;
  std::vector<index_t> flipped(static_cast<std::size_t>(blocks));
  std::vector<index_t> lost(static_cast<std::size_t>(blocks));
  const auto count = [&](index_t part) {
    const auto some = tokens.middleRows(part * block, std::min(block, tokens.rows() - part * block));
    const Eigen::MatrixXd x = some.cast<double>();
    const Eigen::MatrixXd logits_a = x * rows_a.transpose();
    const Eigen::MatrixXd logits_b = x * rows_b.transpose();
    for (index_t t = 0; t < x.rows(); ++t) {
      const auto in_a = chosen_of(logits_a.row(t), top_k);
      const auto in_b = chosen_of(logits_b.row(t), top_k);
      for (std::size_t i = 0; i < in_a.size(); ++i) {
        const index_t j = partner[i];
        const bool stays = j >= 0 && in_b[static_cast<std::size_t>(j)];
        flipped[static_cast<std::size_t>(part)] += in_a[i] && !stays ? 1 : 0;
        lost[static_cast<std::size_t>(part)] += in_a[i] && j < 0 ? 1 : 0;
      }
    }
  };
  for_each_parallel(blocks, count, [](index_t, index_t) {});
  const auto all = static_cast<double>(tokens.rows() * std::min(top_k, rows_a.rows()));
  const auto share = [&](const std::vector<index_t>& counts) {
    return static_cast<double>(std::accumulate(counts.begin(), counts.end(), index_t{0})) / all;
  };
  return {share(flipped), share(lost)};
}

}  // namespace verify
