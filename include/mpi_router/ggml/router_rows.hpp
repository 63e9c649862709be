// The rows of the router as a node of a ggml graph: r′_i = C · r_i M_i / ‖r_i M_i‖ (Eq. 4, 5).
#pragma once

#include <mpi_router/ggml/operators.hpp>
#include <mpi_router/router/router_rows.hpp>

#include <algorithm>
#include <exception>
#include <limits>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

MPIROUTER_BEGIN
namespace ggml {

namespace detail {

/// Throws usage_error, with both tensors' names, where rows do not fit experts.
inline void expect_layer(const ::ggml_tensor* experts, const ::ggml_tensor* router) {
  const auto [n, f, d] = expect_experts(experts);
  expect_rows(router);
  expect(router->ne[0] == d && router->ne[1] == n, *router, "there are no rows [D = ", d, ", N = ", n,
         "] for ", describe(*experts));
}

/// What went wrong while a graph was computed: of the first expert, whichever thread it was on. Threads may
/// tell at once.
class first_error {
 public:
  void tell(index_t expert, const char* what) noexcept {
    const std::scoped_lock lock(mutex_);
    if (expert < expert_) {
      expert_ = expert;
#if MPIROUTER_HAS_EXCEPTIONS
      try {
        text_ = what;
      } catch (...) {
        text_.clear();  // no memory for it: is_told() still says so
      }
#else
      text_ = what;
#endif
    }
  }
  [[nodiscard]] bool is_told() const {
    const std::scoped_lock lock(mutex_);
    return expert_ != none;
  }
  /// Its text, and forgets it; empty where there was none.
  [[nodiscard]] std::string take() {
    const std::scoped_lock lock(mutex_);
    if (std::exchange(expert_, none) == none) return "";
    return text_.empty() ? std::string("mpi_router: out of memory") : std::exchange(text_, {});
  }

 private:
  static constexpr index_t none = std::numeric_limits<index_t>::max();
  mutable std::mutex mutex_;
  index_t expert_ = none;
  std::string text_;
};

}  // namespace detail

/// A custom op of ggml that makes r′ of the router's rows from the gate matrices, at every compute of its
/// graph: the stateless router, whose parameter stays as it is.
///
///   ggml::router_rows_op<> op({.radius = 2});                            // one for each layer
///   ggml_tensor* rows = op.build(ctx, gate_exps, router);                // [D, N], F32
///   ggml_tensor* logits = ggml_mul_mat(ctx, rows, tokens);               // [N, T]
///   …
///   ggml_graph_compute(graph, &plan);
///   op.check();                                                          // throws what went wrong inside
///
/// Each of ggml's threads takes its share of the experts, without a barrier; the rows are bitwise the same
/// for any number of them, and those of mpi_router::router_rows over expert_operators. No exception leaves
/// the op: an error becomes a text, kept until it is taken, and the rows of the share that it struck are NaN.
///
/// Each thread allocates 3D + 1 floats a call. The op must outlive the graphs that it is in, only one of
/// which may be computed at a time. It runs on the CPU backend and has no gradient in ggml.
template <class Backend = reference>
class router_rows_op {
 public:
  explicit router_rows_op(const router_options& options = {}, Backend backend = {})
      : options_(options), backend_(backend) {}
  router_rows_op(const router_rows_op&) = delete;
  router_rows_op& operator=(const router_rows_op&) = delete;

  /// Adds the op to a graph: returns its result, F32, ne = [D, N], which has the router's name with " (mpi)"
  /// behind it.
  ///
  /// experts: ne = [D, F, N], see experts(); router: ne = [D, N] of F32, BF16 or F16. Neither need have data
  /// yet. Throws usage_error that names the tensors where types, shapes, strides, buffers or options do not
  /// fit.
  [[nodiscard]] ::ggml_tensor* build(::ggml_context* ctx, ::ggml_tensor* experts, ::ggml_tensor* router) {
    detail::expect_layer(experts, router);
    const auto [d, n] = std::pair(router->ne[0], router->ne[1]);
    static_cast<void>(mpi_router::detail::expect_options<float>("ggml::router_rows_op", options_, n));
    statuses_.assign(static_cast<std::size_t>(n), status::ok);
    ::ggml_tensor* sources[] = {experts, router};
    ::ggml_tensor* const rows =
        ggml_custom_4d(ctx, GGML_TYPE_F32, d, n, 1, 1, sources, 2, compute, GGML_N_TASKS_MAX, this);
    return ggml_format_name(rows, "%s (mpi)", router->name);
  }

  /// Whether an error has been told since one was last taken.
  [[nodiscard]] bool failed() const { return error_.is_told(); }
  /// The error of the first expert that had one, and forgets it; empty where there was none.
  [[nodiscard]] std::string take_error() { return error_.take(); }
  /// Throws it as usage_error.
  void check() {
    if (const std::string error = take_error(); !error.empty()) {
#if MPIROUTER_HAS_EXCEPTIONS
      throw usage_error(error);
#else
      core::usage_failure(error);
#endif
    }
  }
  /// What became of each row when the graph was last computed. A row without a step is what
  /// options.degenerate says, and no error.
  [[nodiscard]] std::span<const status> statuses() const noexcept { return statuses_; }

 private:
  /// What ggml calls, on each of its threads.
  static void compute(::ggml_tensor* rows, int ith, int nth, void* self) noexcept {
    auto& op = *static_cast<router_rows_op*>(self);
    const index_t first = rows->ne[1] * ith / nth;
    const index_t end = rows->ne[1] * (ith + 1) / nth;
    if (first == end) return;
#if MPIROUTER_HAS_EXCEPTIONS
    try {
      op.compute_share(*rows, first, end);
    } catch (const std::exception& error) {
      op.give_up(*rows, first, end, error.what());
    } catch (...) {
      op.give_up(*rows, first, end, "mpi_router: an exception that is no std::exception");
    }
#else
    op.compute_share(*rows, first, end);
#endif
  }

  /// Rows [first, end). The scheduler may have put copies of the tensors in place of those of build().
  void compute_share(::ggml_tensor& result, index_t first, index_t end) {
    detail::expect_layer(result.src[0], result.src[1]);
    const any_experts gates = experts(result.src[0]);
    const matrix_view<float> out = rows<float>(&result);
    detail::expect(out.rows() == static_cast<index_t>(statuses_.size()), result, "its op was built anew for ",
                   statuses_.size(), " experts: one op for each layer");
    router_options options = options_;
    options.radius = router_radius::fixed(options_.radius.of(out.rows()));  // N of all, not of the share
    const index_t d = out.cols();
    std::vector<float> row(static_cast<std::size_t>(d));
    std::vector<float> workspace(static_cast<std::size_t>(router_rows_workspace(1, d)));
    std::visit(
        [&](const auto& router) {
          for (index_t i = first; i < end; ++i) {
            const auto expert = [&](index_t) { return gram_of_expert(gates, i, row, backend_); };
            router_rows(expert, router.middle_rows(i, 1), out.middle_rows(i, 1), options, workspace,
                        {.statuses = std::span(statuses_).subspan(static_cast<std::size_t>(i), 1)});
          }
        },
        rows(result.src[1]));
  }

  void give_up(::ggml_tensor& result, index_t first, index_t end, const char* why) noexcept {
    error_.tell(first, why);
    const auto known = std::min(end, static_cast<index_t>(statuses_.size()));
    for (index_t i = first; i < known; ++i) {
      statuses_[static_cast<std::size_t>(i)] = status::non_finite;
    }
    if (result.data != nullptr) {
      auto* const from = static_cast<float*>(result.data) + first * result.ne[0];
      std::fill_n(from, (end - first) * result.ne[0], std::numeric_limits<float>::quiet_NaN());
    }
  }

  router_options options_;
  [[no_unique_address]] Backend backend_;
  std::vector<status> statuses_;
  detail::first_error error_;
};

}  // namespace ggml
MPIROUTER_END
