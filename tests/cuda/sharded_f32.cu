// Shards of weights in f32.
#include "sharded_kinds.hpp"
#include "sharded_types.hpp"

namespace sharded_checks {

namespace {
using kinds_of_f32 = kinds<float, float, float, float>;
constexpr tolerance near_f32{2e-6, 5e-6, 1e-5, 1e-5};
}  // namespace

void f32_on_one_gpu() { kinds_of_f32::on_one_gpu("f32", 0x1p80F, near_f32); }
#ifdef MPIROUTER_TEST_NCCL
void f32_over_nccl(const std::vector<ncclComm_t>& comms) {
  kinds_of_f32::over_nccl("f32", comms, 0x1p80F, near_f32);
}
#endif

}  // namespace sharded_checks
