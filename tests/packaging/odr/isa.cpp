// Compiled once for each instruction set, as FUNCTION. Returns the name of the namespace that computed, so
// that a mixture shows.
#include <mpi_router/mpi_router.hpp>

#include <vector>

#define TEXT_OF_(x) #x
#define TEXT_OF(x) TEXT_OF_(x)

const char* FUNCTION(const float* a, mpi_router::index_t ffn_dim, mpi_router::index_t hidden_dim,
                     const float* row, float* out);

namespace {

// Extents are not known to the compiler and every function is called more than once, so that inlining is not
// the cheapest choice.
template <class T>
void step(const T* a, mpi_router::index_t ffn_dim, mpi_router::index_t hidden_dim, const float* row,
          float* out) {
  using mpi_router::vector_view;
  const mpi_router::expert_shape shape{.num_experts = 1, .ffn_dim = ffn_dim, .hidden_dim = hidden_dim};
  for (const auto& experts : {mpi_router::experts_nfd(a, shape), mpi_router::experts_ndf(a, shape)}) {
    const auto all = experts[0];
    const auto shard =
        experts[0].transposed().middle_rows(1, hidden_dim - 1).middle_cols(0, ffn_dim - 1).transposed();
    mpi_router::power_step(mpi_router::gram(all), vector_view(row, hidden_dim), vector_view(out, hidden_dim),
                           1.0F);
    mpi_router::power_step(mpi_router::gram(shard), vector_view(row, hidden_dim - 1),
                           vector_view(out, hidden_dim - 1), 1.0F);
  }
  const auto fd = mpi_router::gate_fd(a, ffn_dim, hidden_dim);
  const auto df = mpi_router::gate_df(a, hidden_dim, ffn_dim);
  mpi_router::power_step(mpi_router::gram(df), vector_view(row, hidden_dim), vector_view(out, hidden_dim),
                         1.0F);
  mpi_router::power_step(mpi_router::gram(fd), vector_view(row, hidden_dim), vector_view(out, hidden_dim),
                         1.0F);
}

}  // namespace

const char* FUNCTION(const float* a, mpi_router::index_t ffn_dim, mpi_router::index_t hidden_dim,
                     const float* row, float* out) {
  std::vector<mpi_router::bf16> brain(static_cast<std::size_t>(ffn_dim * hidden_dim));
  std::vector<mpi_router::f16> half(brain.size());
  for (std::size_t i = 0; i < brain.size(); ++i) {
    brain[i] = mpi_router::bf16(a[i]);
    half[i] = mpi_router::f16(a[i]);
  }
  step(brain.data(), ffn_dim, hidden_dim, row, out);
  step(half.data(), ffn_dim, hidden_dim, row, out);
  step(a, ffn_dim, hidden_dim, row, out);
  return TEXT_OF(MPIROUTER_ISA_NAMESPACE);
}
