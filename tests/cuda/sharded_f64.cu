// Shards of weights in f64.
#include "sharded_kinds.hpp"
#include "sharded_types.hpp"

namespace sharded_checks {

namespace {
using kinds_of_f64 = kinds<double, double, double, double>;
constexpr tolerance near_f64{1e-6, 1e-12, 1e-6, 1e-6};
}  // namespace

void f64_on_one_gpu() { kinds_of_f64::on_one_gpu("f64", 0x1p80F, near_f64); }
#ifdef MPIROUTER_TEST_NCCL
void f64_over_nccl(const std::vector<ncclComm_t>& comms) {
  kinds_of_f64::over_nccl("f64", comms, 0x1p80F, near_f64);
}
#endif

}  // namespace sharded_checks
