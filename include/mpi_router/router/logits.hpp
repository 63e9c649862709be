// The logits of tokens, x R′ᵀ + b, and their backward.
#pragma once

#include <mpi_router/core/apart.hpp>
#include <mpi_router/router/products.hpp>
#include <mpi_router/router/token_blocks.hpp>

MPIROUTER_BEGIN
namespace detail {

template <Accumulator S, class X>
void check_logits(const char* what, const matrix_view<X>& tokens, const matrix_view<const S>& rows,
                  const vector_view<const S>& bias, const matrix_view<S>& logits) {
  expect(tokens.cols() == rows.cols() && logits.rows() == tokens.rows() && logits.cols() == rows.rows(), what,
         ": tokens [", tokens.rows(), ", ", tokens.cols(), "], rows [", rows.rows(), ", ", rows.cols(),
         "], logits [", logits.rows(), ", ", logits.cols(), "]");
  expect(bias.size() == 0 || bias.size() == rows.rows(), what, ": a bias of the logits of ", bias.size(),
         " elements for ", rows.rows(), " experts");
  expect_apart(what, {"the logits", addresses(logits)},
               {{"the tokens", addresses(tokens)},
                {"the rows", addresses(rows)},
                {"the bias of the logits", addresses(bias)}});
}

/// The logits of the tokens [first, first + count).
template <class X, Accumulator S, class Product>
void block_of_logits(const matrix_view<X>& tokens, const matrix_view<const S>& rows,
                     const vector_view<const S>& bias, const matrix_view<S>& logits, const Product& product,
                     index_t first, index_t count) {
  const matrix_view<S> out = logits.middle_rows(first, count);
  for (index_t t = 0; bias.size() != 0 && t < count; ++t) {
    for (index_t i = 0; i < bias.size(); ++i) {
      out(t, i) = bias[i];
    }
  }
  product.multiply(matrix_view<const std::remove_const_t<X>>(tokens.middle_rows(first, count)),
                   rows.transposed(), out,
                   bias.size() != 0 ? gradient_mode::accumulate : gradient_mode::write);
}

/// grad_bias ← or += Σ_t grad_logits, one task for each 64 experts.
template <Accumulator S, class Run>
void sum_of_rows(const matrix_view<const S>& grad_logits, const vector_view<S>& grad_bias, bool accumulate,
                 const Run& executor) {
  constexpr index_t width = 64;
  const index_t n = grad_bias.size();
  executor(n / width + (n % width != 0 ? 1 : 0), [&](index_t block) {
    const index_t first = block * width;
    const index_t count = std::min(width, n - first);
    std::array<double, static_cast<std::size_t>(width)> sum{};
    for (index_t t = 0; t < grad_logits.rows(); ++t) {
      for (index_t i = 0; i < count; ++i) {
        sum[static_cast<std::size_t>(i)] += grad_logits(t, first + i);
      }
    }
    for (index_t i = 0; i < count; ++i) {
      const S before = accumulate ? grad_bias[first + i] : S{0};
      grad_bias[first + i] = before + static_cast<S>(sum[static_cast<std::size_t>(i)]);
    }
  });
}

}  // namespace detail

/// The logits of all tokens, x R′ᵀ + b: tokens [T, D] of any storage type, rows [N, D], bias: N elements, as
/// the routers of gpt-oss have it, or empty; logits [T, N], apart from the others, summed in S. One task for
/// each 256 tokens. Throws usage_error on shapes and overlap.
template <Scalar X, Accumulator S, class Run = serial_executor, class Product = plain_products>
  requires MatrixProduct<Product, std::remove_const_t<X>, S, S>
void router_logits(const matrix_view<X>& tokens, std::type_identity_t<matrix_view<const S>> rows,
                   std::type_identity_t<vector_view<const S>> bias, const matrix_view<S>& logits,
                   const Run& executor = {}, const Product& product = {}) {
  detail::check_logits<S>("router_logits", tokens, rows, bias, logits);
  detail::for_token_blocks(executor, tokens.rows(), [&](index_t first, index_t count, index_t) {
    detail::block_of_logits<X, S>(tokens, rows, bias, logits, product, first, count);
  });
}

/// The same without a bias.
template <Scalar X, Accumulator S, class Run = serial_executor, class Product = plain_products>
  requires MatrixProduct<Product, std::remove_const_t<X>, S, S>
void router_logits(const matrix_view<X>& tokens, std::type_identity_t<matrix_view<const S>> rows,
                   const matrix_view<S>& logits, const Run& executor = {}, const Product& product = {}) {
  router_logits(tokens, rows, {}, logits, executor, product);
}

namespace detail {

template <Accumulator S, class X>
void check_logits_vjp(const char* what, const matrix_view<X>& tokens, const matrix_view<const S>& rows,
                      const matrix_view<const S>& grad_logits, const matrix_view<S>& grad_tokens,
                      const matrix_view<S>& grad_rows, const vector_view<S>& grad_bias) {
  const auto same = [](const auto& a, const auto& b) {
    return (a.rows() == 0 && a.cols() == 0) || (a.rows() == b.rows() && a.cols() == b.cols());
  };
  expect(tokens.cols() == rows.cols() && grad_logits.rows() == tokens.rows() &&
             grad_logits.cols() == rows.rows() && same(grad_tokens, tokens) && same(grad_rows, rows),
         what, ": tokens [", tokens.rows(), ", ", tokens.cols(), "], rows [", rows.rows(), ", ", rows.cols(),
         "], gradients [", grad_logits.rows(), ", ", grad_logits.cols(), "], [", grad_tokens.rows(), ", ",
         grad_tokens.cols(), "], [", grad_rows.rows(), ", ", grad_rows.cols(), "]");
  expect(grad_bias.size() == 0 || grad_bias.size() == rows.rows(), what, ": the gradient to the bias has ",
         grad_bias.size(), " elements for ", rows.rows(), " experts");
  expect_apart(what,
               {{"the gradient to the tokens", addresses(grad_tokens)},
                {"the gradient to the rows", addresses(grad_rows)},
                {"the gradient to the bias", addresses(grad_bias)}},
               {{"the tokens", addresses(tokens)},
                {"the rows", addresses(rows)},
                {"the gradient of the logits", addresses(grad_logits)}});
}

}  // namespace detail

/// The backward of router_logits: grad_tokens ← or += Ḡ R′, grad_rows ← or += Ḡᵀ X, grad_bias ← or += Σ_t
/// Ḡ_t, with Ḡ = grad_logits, [T, N]. An empty view asks for nothing. One task for each 256 tokens, then one
/// for each 64 columns of grad_rows: every element is summed in the order of the tokens, on any executor.
/// Throws usage_error on shapes and overlap.
template <Scalar X, Accumulator S, class Run = serial_executor, class Product = plain_products>
  requires(MatrixProduct<Product, S, S, S> && MatrixProduct<Product, S, std::remove_const_t<X>, S>)
void router_logits_vjp(const matrix_view<X>& tokens, std::type_identity_t<matrix_view<const S>> rows,
                       std::type_identity_t<matrix_view<const S>> grad_logits,
                       const matrix_view<S>& grad_tokens,
                       const std::type_identity_t<matrix_view<S>>& grad_rows,
                       const std::type_identity_t<vector_view<S>>& grad_bias, gradient_mode mode,
                       const Run& executor = {}, const Product& product = {}) {
  const bool accumulate = core::accumulates(mode);
  detail::check_logits_vjp<S>("router_logits_vjp", tokens, rows, grad_logits, grad_tokens, grad_rows,
                              grad_bias);
  if (!grad_tokens.empty()) {
    detail::for_token_blocks(executor, tokens.rows(), [&](index_t first, index_t count, index_t) {
      product.multiply(grad_logits.middle_rows(first, count), rows, grad_tokens.middle_rows(first, count),
                       mode);
    });
  }
  if (!grad_rows.empty()) {
    constexpr index_t width = 64;
    const index_t d = tokens.cols();
    executor(d / width + (d % width != 0 ? 1 : 0), [&](index_t block) {
      const index_t first = block * width;
      const index_t count = std::min(width, d - first);
      product.multiply(grad_logits.transposed(),
                       matrix_view<const std::remove_const_t<X>>(tokens.middle_cols(first, count)),
                       grad_rows.middle_cols(first, count), mode);
    });
  }
  detail::sum_of_rows<S>(grad_logits, grad_bias, accumulate, executor);
}

/// The same without a bias.
template <Scalar X, Accumulator S, class Run = serial_executor, class Product = plain_products>
  requires(MatrixProduct<Product, S, S, S> && MatrixProduct<Product, S, std::remove_const_t<X>, S>)
void router_logits_vjp(const matrix_view<X>& tokens, std::type_identity_t<matrix_view<const S>> rows,
                       std::type_identity_t<matrix_view<const S>> grad_logits,
                       const matrix_view<S>& grad_tokens,
                       const std::type_identity_t<matrix_view<S>>& grad_rows, gradient_mode mode,
                       const Run& executor = {}, const Product& product = {}) {
  router_logits_vjp(tokens, rows, grad_logits, grad_tokens, grad_rows, {}, mode, executor, product);
}

MPIROUTER_END
