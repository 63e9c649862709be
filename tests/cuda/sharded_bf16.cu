// Shards of weights in bf16.
#include "sharded_kinds.hpp"
#include "sharded_types.hpp"

namespace sharded_checks {

namespace {
using kinds_of_bf16 = kinds<bf16, bf16, float, float>;
constexpr tolerance near_bf16{2e-6, 5e-6, 1e-5, 1e-2};
}  // namespace

void bf16_on_one_gpu() { kinds_of_bf16::on_one_gpu("bf16", 0x1p80F, near_bf16); }
#ifdef MPIROUTER_TEST_NCCL
void bf16_over_nccl(const std::vector<ncclComm_t>& comms) {
  kinds_of_bf16::over_nccl("bf16", comms, 0x1p80F, near_bf16);
}
#endif

}  // namespace sharded_checks
