// Shards of weights in f16.
#include "sharded_kinds.hpp"
#include "sharded_types.hpp"

namespace sharded_checks {

namespace {
using kinds_of_f16 = kinds<f16, float, f16, bf16>;
constexpr tolerance near_f16{8e-3, 8e-3, 1e-5, 1e-5};
}  // namespace

void f16_on_one_gpu() { kinds_of_f16::on_one_gpu("f16", 0x1p6F, near_f16); }
#ifdef MPIROUTER_TEST_NCCL
void f16_over_nccl(const std::vector<ncclComm_t>& comms) {
  kinds_of_f16::over_nccl("f16", comms, 0x1p6F, near_f16);
}
#endif

}  // namespace sharded_checks
