// The same block in double, by loops that read like the formulas.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <span>
#include <vector>

namespace in_double {

using vector = std::vector<double>;
using row = std::span<const double>;

/// Matrix i of n, and row f of one, of numbers that lie one after the other.
inline row piece(row all, std::size_t i, std::size_t n) {
  return all.subspan(i * (all.size() / n), all.size() / n);
}
inline double dot(row a, row b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); }

/// y = A x.
inline vector product(row a, row x) {
  const std::size_t rows = a.size() / x.size();
  vector y(rows);
  for (std::size_t f = 0; f < rows; ++f) y[f] = dot(piece(a, f, rows), x);
  return y;
}

/// r′ = C · rM/‖rM‖, M = AᵀA (Eq. 4, 5).
inline vector step(row a, row r, double radius) {
  const vector y = product(a, r);
  vector u(r.size());
  for (std::size_t f = 0; f < y.size(); ++f) {
    for (std::size_t d = 0; d < u.size(); ++d) u[d] += y[f] * piece(a, f, y.size())[d];
  }
  const double norm = std::sqrt(dot(u, u));
  for (double& x : u) x *= radius / norm;
  return u;
}

/// The K largest, the first of equal ones first.
inline std::vector<std::size_t> largest(row values, std::size_t k) {
  std::vector<std::size_t> order(values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return values[a] > values[b]; });
  order.resize(k);
  return order;
}

/// down(silu(gate x) ∘ up x).
inline vector expert(row gate, row up, row down, row x) {
  vector hidden = product(gate, x);
  const vector linear = product(up, x);
  for (std::size_t f = 0; f < hidden.size(); ++f) hidden[f] *= linear[f] / (1 + std::exp(-hidden[f]));
  return product(down, hidden);
}

/// Of one token: what its chosen experts give, weighted by the softmax over them (the softmax of all logits,
/// normalised over K, is that of these K).
inline vector token(row gate, row up, row down, row x, row logits, const std::vector<std::size_t>& chosen) {
  vector out(x.size());
  double total = 0;
  for (const auto i : chosen) total += std::exp(logits[i]);
  for (const auto i : chosen) {
    const std::size_t n = logits.size();
    const vector y = expert(piece(gate, i, n), piece(up, i, n), piece(down, i, n), x);
    for (std::size_t d = 0; d < out.size(); ++d) out[d] += std::exp(logits[i]) / total * y[d];
  }
  return out;
}

}  // namespace in_double
