// Compiled once for each instruction set, as FUNCTION. Returns the name of the namespace that computed, so
// that a mixture shows.
#include <mpi_router/mpi_router.hpp>

#include <array>

#define TEXT_OF_(x) #x
#define TEXT_OF(x) TEXT_OF_(x)

const char* FUNCTION(const float* a, const float* row, float* out);

namespace {

template <class T>
void step(const T* a, const float* row, float* out) {
  const auto experts = mpi_router::experts_nfd(a, {.num_experts = 1, .ffn_dim = 3, .hidden_dim = 37});
  mpi_router::power_step(mpi_router::gram(experts[0]), mpi_router::vector_view(row, 37),
                         mpi_router::vector_view(out, 37), 1.0F);
  mpi_router::power_step(mpi_router::gram(experts[0].middle_rows(1, 2).transposed().transposed()),
                         mpi_router::vector_view(row, 37), mpi_router::vector_view(out, 37), 1.0F);
}

}  // namespace

const char* FUNCTION(const float* a, const float* row, float* out) {
  std::array<mpi_router::bf16, 3 * 37> brain{};
  std::array<mpi_router::f16, 3 * 37> half{};
  for (std::size_t i = 0; i < brain.size(); ++i) {
    brain[i] = mpi_router::bf16(a[i]);
    half[i] = mpi_router::f16(a[i]);
  }
  step(brain.data(), row, out);
  step(half.data(), row, out);
  step(a, row, out);
  return TEXT_OF(MPIROUTER_ISA_NAMESPACE);
}
