#include "peers.hpp"

#if defined(MPIROUTER_HAVE_OPENBLAS)
#include <cblas.h>

namespace bench {
namespace {

// Stored rows of A (by_rows), or of its transpose: `rows` × `cols`, row-major either way.
void gemv(bool transposed, index_t rows, index_t cols, const float* a, const float* x, float* y) {
  cblas_sgemv(CblasRowMajor, transposed ? CblasTrans : CblasNoTrans, static_cast<int>(rows),
              static_cast<int>(cols), 1, a, static_cast<int>(cols), x, 1, 0, y, 1);
}
void gemv(bool transposed, index_t rows, index_t cols, const double* a, const double* x, double* y) {
  cblas_dgemv(CblasRowMajor, transposed ? CblasTrans : CblasNoTrans, static_cast<int>(rows),
              static_cast<int>(cols), 1, a, static_cast<int>(cols), x, 1, 0, y, 1);
}
void ger(index_t rows, index_t cols, const float* x, const float* y, float* a) {
  cblas_sger(CblasRowMajor, static_cast<int>(rows), static_cast<int>(cols), 1, x, 1, y, 1, a,
             static_cast<int>(cols));
}
void ger(index_t rows, index_t cols, const double* x, const double* y, double* a) {
  cblas_dger(CblasRowMajor, static_cast<int>(rows), static_cast<int>(cols), 1, x, 1, y, 1, a,
             static_cast<int>(cols));
}

template <class T>
contender make(const problem<T>& p) {
  return {"OpenBLAS", [&p] {
            openblas_set_num_threads(1);  // the threads go to the experts
            const index_t f = p.what.shape.ffn_dim;
            const index_t d = p.what.shape.hidden_dim;
            const index_t rows = p.what.by_rows ? f : d;
            const index_t cols = p.what.by_rows ? d : f;
            for_each_expert(p.what.shape.num_experts, p.what.threads, [&](index_t i) {
              const T* a = p.weights.data() + i * f * d;
              const T* r = p.rows.data() + i * d;
              T* y = p.projections.data() + i * f;
              T* u = p.images.data() + i * d;
              gemv(!p.what.by_rows, rows, cols, a, r, y);
              if (p.what.work == work_kind::forward) {
                gemv(p.what.by_rows, rows, cols, a, y, u);
                return;
              }
              const T* z = p.duals.data() + i * d;
              T* w = p.dual_projections.data() + i * f;
              T* g = p.gradient.data() + i * f * d;
              gemv(!p.what.by_rows, rows, cols, a, z, w);
              gemv(p.what.by_rows, rows, cols, a, w, u);
              ger(rows, cols, p.what.by_rows ? y : z, p.what.by_rows ? z : y, g);
              ger(rows, cols, p.what.by_rows ? w : r, p.what.by_rows ? r : w, g);
            });
          }};
}

}  // namespace

template <>
std::optional<contender> openblas(const problem<float>& p) {
  return make(p);
}
template <>
std::optional<contender> openblas(const problem<double>& p) {
  return make(p);
}

}  // namespace bench
#else
namespace bench {
template <>
std::optional<contender> openblas(const problem<float>&) {
  return std::nullopt;
}
template <>
std::optional<contender> openblas(const problem<double>&) {
  return std::nullopt;
}
}  // namespace bench
#endif
